variable "cluster_name" {
  description = "The cluster."
  type        = string
}

variable "kms_key_arn" {
  description = "Key for the nodes' disks."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "Boundary of the roles that are made here; bootstrap makes it."
  type        = string
}
