"""The public names: flat ones for daily use, and namespaces. Read at run time too."""

from keras_modelsec import callbacks as callbacks
from keras_modelsec import defenses as defenses
from keras_modelsec import encryption as encryption
from keras_modelsec import errors as errors
from keras_modelsec import guards as guards
from keras_modelsec import integrity as integrity
from keras_modelsec import layers as layers
from keras_modelsec import privacy as privacy
from keras_modelsec import robustness as robustness
from keras_modelsec import trust as trust
from keras_modelsec import watermark as watermark
from keras_modelsec._core.export import export_plain as export_plain
from keras_modelsec._signing.key_files import generate_keys as generate_keys
from keras_modelsec._signing.trust_store import TrustStore as TrustStore
from keras_modelsec.errors import PrivacyBudgetExceeded as PrivacyBudgetExceeded
from keras_modelsec.errors import SignatureError as SignatureError
from keras_modelsec.errors import TamperedModelError as TamperedModelError
from keras_modelsec.errors import UnrepairableError as UnrepairableError
from keras_modelsec.integrity.callbacks.sign_on_save import SignOnSave as SignOnSave
from keras_modelsec.integrity.callbacks.signed_backup import (
    SignedBackupAndRestore as SignedBackupAndRestore,
)
from keras_modelsec.integrity.damage.locating import locate_tampering as locate_tampering
from keras_modelsec.integrity.encryption.encrypted_models import load_encrypted as load_encrypted
from keras_modelsec.integrity.encryption.encrypted_models import (
    load_encrypted_weights as load_encrypted_weights,
)
from keras_modelsec.integrity.encryption.encrypted_models import save_encrypted as save_encrypted
from keras_modelsec.integrity.encryption.file_encryption import decrypt_file as decrypt_file
from keras_modelsec.integrity.encryption.file_encryption import encrypt_file as encrypt_file
from keras_modelsec.integrity.guards.activation_guard import ActivationGuard as ActivationGuard
from keras_modelsec.integrity.guards.guarding import guard_activations as guard_activations
from keras_modelsec.integrity.guards.integrity_guard import IntegrityGuard as IntegrityGuard
from keras_modelsec.integrity.loading.verified_copy import verified_copy as verified_copy
from keras_modelsec.integrity.loading.verified_loading import (
    load_verified_model as load_verified_model,
)
from keras_modelsec.integrity.loading.verified_loading import (
    load_verified_weights as load_verified_weights,
)
from keras_modelsec.integrity.parity.protecting import write_parity as write_parity
from keras_modelsec.integrity.parity.repairing import repair as repair
from keras_modelsec.integrity.signing.signing import sign as sign
from keras_modelsec.integrity.signing.verifying import verify as verify
from keras_modelsec.privacy.dp_mixin import DPMixin as DPMixin
from keras_modelsec.privacy.dp_optimizer import DPOptimizer as DPOptimizer
from keras_modelsec.privacy.privacy_budget import PrivacyBudget as PrivacyBudget
from keras_modelsec.robustness import attacks as attacks
from keras_modelsec.robustness.adversarial_mixin import AdversarialMixin as AdversarialMixin
from keras_modelsec.robustness.adversarial_training import (
    AdversarialTraining as AdversarialTraining,
)
from keras_modelsec.robustness.robustness_monitor import RobustnessMonitor as RobustnessMonitor
from keras_modelsec.secure_model import SecureModel as SecureModel
from keras_modelsec.watermark.attaching import attach_watermark as attach_watermark
from keras_modelsec.watermark.verification import verify_watermark as verify_watermark
from keras_modelsec.watermark.watermark_monitor import WatermarkMonitor as WatermarkMonitor
from keras_modelsec.watermark.watermark_regularizer import (
    WatermarkRegularizer as WatermarkRegularizer,
)

__version__: str
