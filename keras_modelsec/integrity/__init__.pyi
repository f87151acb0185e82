"""What `keras_modelsec.integrity` offers, and where it is made."""

from keras_modelsec.integrity.callbacks.sign_on_save import SignOnSave as SignOnSave
from keras_modelsec.integrity.callbacks.signed_backup import (
    SignedBackupAndRestore as SignedBackupAndRestore,
)
from keras_modelsec.integrity.damage.locating import locate_tampering as locate_tampering
from keras_modelsec.integrity.damage.tamper_report import ChunkDamage as ChunkDamage
from keras_modelsec.integrity.damage.tamper_report import FileDamage as FileDamage
from keras_modelsec.integrity.damage.tamper_report import Shift as Shift
from keras_modelsec.integrity.damage.tamper_report import TamperReport as TamperReport
from keras_modelsec.integrity.damage.tamper_report import TensorDamage as TensorDamage
from keras_modelsec.integrity.damage.tamper_report import ValueChanges as ValueChanges
from keras_modelsec.integrity.loading.verified_copy import verified_copy as verified_copy
from keras_modelsec.integrity.loading.verified_loading import (
    load_verified_model as load_verified_model,
)
from keras_modelsec.integrity.loading.verified_loading import (
    load_verified_weights as load_verified_weights,
)
from keras_modelsec.integrity.parity.parity_report import ParityReport as ParityReport
from keras_modelsec.integrity.parity.protecting import write_parity as write_parity
from keras_modelsec.integrity.parity.repairing import RepairReport as RepairReport
from keras_modelsec.integrity.parity.repairing import repair as repair
from keras_modelsec.integrity.signing.signing import SigningReport as SigningReport
from keras_modelsec.integrity.signing.signing import sign as sign
from keras_modelsec.integrity.signing.verifying import verify as verify
