"""What `keras_modelsec.encryption` offers, and where it is made."""

from keras_modelsec.integrity.encryption.encrypted_models import load_encrypted as load_encrypted
from keras_modelsec.integrity.encryption.encrypted_models import (
    load_encrypted_weights as load_encrypted_weights,
)
from keras_modelsec.integrity.encryption.encrypted_models import save_encrypted as save_encrypted
from keras_modelsec.integrity.encryption.encryption_keys import (
    EncryptionPrivateKey as EncryptionPrivateKey,
)
from keras_modelsec.integrity.encryption.encryption_keys import (
    EncryptionPublicKey as EncryptionPublicKey,
)
from keras_modelsec.integrity.encryption.encryption_keys import (
    generate_encryption_keys as generate_encryption_keys,
)
from keras_modelsec.integrity.encryption.file_encryption import decrypt_file as decrypt_file
from keras_modelsec.integrity.encryption.file_encryption import encrypt_file as encrypt_file
from keras_modelsec.integrity.encryption.key_slots import Passphrase as Passphrase
