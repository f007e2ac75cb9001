variable "name" {
  description = "Name in Secrets Manager, as `wmtp-prod/rds/airflow`."
  type        = string
}

variable "description" {
  description = "What it opens."
  type        = string
}

variable "kms_key_arn" {
  description = "Key of the secret."
  type        = string
}

variable "fields" {
  description = "Keys whose values are no secret: a user's name, a host."
  type        = map(string)
  default     = {}
}

variable "generated" {
  description = "Keys whose values are made here, each with its number of letters and digits."
  type        = map(number)

  validation {
    condition     = alltrue([for length in values(var.generated) : length >= 32])
    error_message = "At least 32 letters and digits, which is 190 bits."
  }
}

variable "fernet" {
  description = "Those of `generated` that are Fernet keys; they must have 32 characters."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for key in var.fernet : lookup(var.generated, key, 0) == 32])
    error_message = "A Fernet key is made of exactly 32 characters."
  }
}

variable "generation" {
  description = "Raise it to make all values anew."
  type        = number
  default     = 1
}

variable "recovery_days" {
  description = "Days that a deleted secret can be brought back; its name is taken until then."
  type        = number
  default     = 30

  validation {
    condition     = var.recovery_days >= 7 && var.recovery_days <= 30
    error_message = "7 to 30 days."
  }
}
