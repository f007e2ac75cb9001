variable "name" {
  description = "Name of the deployment; repositories are `<name>/<repository>`."
  type        = string
}

variable "repositories" {
  description = "Images that are built here."
  type        = set(string)

  validation {
    condition     = length(var.repositories) > 0 && alltrue([for name in var.repositories : can(regex("^[a-z0-9][a-z0-9-]*$", name))])
    error_message = "At least one, of lower-case letters, digits and hyphens."
  }
}

variable "kms_key_arn" {
  description = "Key of the images."
  type        = string
}
