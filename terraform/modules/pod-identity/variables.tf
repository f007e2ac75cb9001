variable "cluster_name" {
  description = "The cluster; also the beginning of the role's name."
  type        = string
}

variable "namespace" {
  description = "Namespace of the service account."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", var.namespace))
    error_message = "A Kubernetes name in full: lower-case letters, digits, hyphens. There are no patterns."
  }
}

variable "service_account" {
  description = "The one service account that may take the role."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", var.service_account))
    error_message = "A Kubernetes name in full: lower-case letters, digits, hyphens. There are no patterns."
  }
}

variable "policy" {
  description = "What it may do, as a policy in JSON. Null: only what `managed_policy_arns` say."
  type        = string
  default     = null
}

variable "managed_policy_arns" {
  description = "Managed policies, by a name of one's own; for add-ons whose makers keep one."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for arn in values(var.managed_policy_arns) : !strcontains(arn, "AdministratorAccess") && !strcontains(arn, "PowerUserAccess")])
    error_message = "No pod needs AdministratorAccess or PowerUserAccess."
  }
}

variable "permissions_boundary_arn" {
  description = "Boundary of the role; bootstrap makes it."
  type        = string
}
