variable "name" {
  description = "Name of the deployment; the instance is `<name>-postgres`."
  type        = string
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets without a way out, in at least two zones."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "RDS wants subnets in at least two zones, also for a single instance."
  }
}

variable "client_security_group_ids" {
  description = "Security groups that may connect, by a name of one's own."
  type        = map(string)
}

variable "engine_version" {
  description = "PostgreSQL, as major version, so that minor ones come by themselves in the maintenance window."
  type        = string
  default     = "17"

  validation {
    condition     = can(regex("^1[5-8]$", var.engine_version))
    error_message = "15, 16, 17 or 18, without a minor version."
  }
}

variable "instance_class" {
  description = "Class of the instance, as `db.t4g.medium`."
  type        = string

  validation {
    condition     = startswith(var.instance_class, "db.")
    error_message = "A class begins with db."
  }
}

variable "multi_az" {
  description = "A standby in another zone that takes over within about a minute or two."
  type        = bool
}

variable "storage_gib" {
  description = "Disk at the start."
  type        = number
  default     = 20

  validation {
    condition     = var.storage_gib >= 20
    error_message = "gp3 starts at 20 GiB."
  }
}

variable "max_storage_gib" {
  description = "How far the disk may grow by itself."
  type        = number
  default     = 200
}

variable "backup_days" {
  description = "Days to any second of which the database can be brought back."
  type        = number

  validation {
    condition     = var.backup_days >= 7 && var.backup_days <= 35
    error_message = "7 to 35 days; RDS keeps no more."
  }
}

variable "deletion_protection" {
  description = "Refuse to delete the instance until this is switched off."
  type        = bool
  default     = true
}

variable "kms_key_arn" {
  description = "Key for disk, backups, master secret and performance data."
  type        = string
}

variable "log_kms_key_arn" {
  description = "Key for the logs in CloudWatch."
  type        = string
}

variable "log_retention_days" {
  description = "Days that the logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = var.log_retention_days >= 365
    error_message = "At least 365."
  }
}

variable "permissions_boundary_arn" {
  description = "Boundary of the monitoring role; bootstrap makes it."
  type        = string
}
