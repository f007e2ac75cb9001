variable "name" {
  description = "Name of the network, which is the cluster's: subnets carry it as `karpenter.sh/discovery`."
  type        = string
}

variable "cidr" {
  description = "Block of the VPC, a /16: every pod has an address of it."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && endswith(var.cidr, "/16")
    error_message = "A /16, as 10.40.0.0/16: three /18 for nodes and pods come of it, and small ones beside."
  }
}

variable "zones" {
  description = "Three zones, in an order that stays. They are named, not looked up: a zone that AWS opens later must not move subnets."
  type        = list(string)

  validation {
    condition     = length(distinct(var.zones)) == 3
    error_message = "Three different zones."
  }
}

variable "nat_per_zone" {
  description = "A NAT gateway in each zone (true), or one for all, whose zone is then a single point of failure (false)."
  type        = bool
}

variable "endpoints_per_zone" {
  description = "Interface endpoints in each zone (true), or in the first one, which the others reach across zones (false)."
  type        = bool
}

variable "more_endpoints" {
  description = "Interface endpoints beside those of ECR and STS, as `secretsmanager`; each costs by the hour and zone."
  type        = set(string)
  default     = []
}

variable "readable_buckets" {
  description = "Buckets of other accounts that may be read through the S3 endpoint: data sources of recipes."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for bucket in var.readable_buckets : !strcontains(bucket, "*")])
    error_message = "Name each bucket in full; a * would open the way out."
  }
}

variable "flow_log_traffic" {
  description = "What flow logs hold: ALL, or REJECT, which costs less and still shows what was refused."
  type        = string
  default     = "ALL"

  validation {
    condition     = contains(["ALL", "REJECT"], var.flow_log_traffic)
    error_message = "ALL or REJECT."
  }
}

variable "log_retention_days" {
  description = "Days that flow logs are kept; a year is what auditors ask for."
  type        = number
  default     = 365

  validation {
    condition     = var.log_retention_days >= 365
    error_message = "At least 365."
  }
}

variable "kms_key_arn" {
  description = "Key for the flow logs."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "Boundary of the roles that are made here; bootstrap makes it."
  type        = string
}
