"""Who signed what, for any domain: keys, how they are kept and trusted, and the signed formats.

Knows no domain and no Keras. From the ground up: `secrets`, `strict_json`; `algorithms`, `keys`,
`key_wrapping`, `key_files`, `external_signer`; `dsse` and `sigstore_bundle`; `certificate_rules`,
`certificates`; `trust_store_contents`, `trust`, `store_signatures`, `trust_store`.
"""
