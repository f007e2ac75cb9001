variable "name" {
  description = "Name of the cluster."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}[a-z0-9]$", var.name))
    error_message = "Three to 32 lower-case letters, digits and hyphens: names of roles and buckets begin with it."
  }
}

variable "kubernetes_version" {
  description = "Version of the control plane. One minor at a time, upwards only."
  type        = string
  default     = "1.35"

  validation {
    condition     = contains(["1.34", "1.35", "1.36"], var.kubernetes_version)
    error_message = "1.34, 1.35 or 1.36: what the charts are checked against."
  }
}

variable "subnet_ids" {
  description = "Private subnets in at least two zones, for the control plane's interfaces."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "EKS wants subnets in at least two zones."
  }
}

variable "public_access_cidrs" {
  description = "Blocks from which the API may be reached over the internet. Empty: from within the VPC only."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : can(cidrhost(cidr, 0)) && tonumber(try(split("/", cidr)[1], 0)) >= 16])
    error_message = "Blocks of /16 or smaller; the whole internet is not one."
  }
}

variable "access" {
  description = "Who may use the Kubernetes API, by a name of one's own: an IAM role, an EKS access policy, and namespaces (none: the whole cluster)."
  type = map(object({
    principal_arn = string
    policy        = string
    namespaces    = optional(list(string), [])
  }))
  default = {}

  validation {
    condition = alltrue([
      for one in values(var.access) :
      contains(["AmazonEKSClusterAdminPolicy", "AmazonEKSAdminPolicy", "AmazonEKSEditPolicy", "AmazonEKSViewPolicy", "AmazonEKSAdminViewPolicy"], one.policy)
    ])
    error_message = "An EKS access policy: AmazonEKSClusterAdminPolicy, AmazonEKSAdminPolicy, AmazonEKSEditPolicy, AmazonEKSViewPolicy or AmazonEKSAdminViewPolicy."
  }

  validation {
    condition     = alltrue([for one in values(var.access) : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/", one.principal_arn))])
    error_message = "Roles only: a user has keys that do not expire."
  }
}

variable "addon_versions" {
  description = "Versions of EKS add-ons to pin, as `{coredns = \"v1.12.0-eksbuild.1\"}`. What is not named gets the default of the cluster's version when it is made."
  type        = map(string)
  default     = {}
}

variable "tags" {
  description = "Tags of the volumes that the volume driver makes."
  type        = map(string)
  default     = {}
}

variable "deletion_protection" {
  description = "Refuse to delete the cluster until this is switched off."
  type        = bool
  default     = true
}

variable "log_retention_days" {
  description = "Days that control-plane logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = var.log_retention_days >= 365
    error_message = "At least 365: the audit log is what is asked for after an incident."
  }
}

variable "kms_key_arn" {
  description = "Key for Kubernetes Secrets, logs and volumes."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "Boundary of the roles that are made here; bootstrap makes it."
  type        = string
}
