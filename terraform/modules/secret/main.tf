# Ephemeral values and write-only arguments: what is made here is sent to Secrets Manager and kept nowhere else, in no plan and
# no state. It is made anew at every run and sent only when `generation` changes.

ephemeral "random_password" "this" {
  for_each = var.generated

  length  = each.value
  special = false
}

locals {
  # A Fernet key is 32 bytes in URL-safe Base64. Of 32 letters and digits there are 190 bits to guess, and neither + nor / comes out.
  generated = {
    for key, password in ephemeral.random_password.this : key => contains(var.fernet, key) ? base64encode(password.result) : password.result
  }
}

resource "aws_secretsmanager_secret" "this" {
  # checkov:skip=CKV2_AWS_57: Changed by raising `generation`; both sides of a password must change together, which a rotation function cannot do in the cluster.
  name                    = var.name
  description             = var.description
  kms_key_id              = var.kms_key_arn
  recovery_window_in_days = var.recovery_days
}

resource "aws_secretsmanager_secret_version" "this" {
  secret_id                = aws_secretsmanager_secret.this.id
  secret_string_wo         = jsonencode(merge(var.fields, local.generated))
  secret_string_wo_version = var.generation
}
