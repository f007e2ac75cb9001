variable "cluster_name" {
  description = "The cluster."
  type        = string
}

variable "kubernetes_version" {
  description = "Version of the nodes: the control plane's, or one below while it is being upgraded."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets, one for each zone."
  type        = list(string)
}

variable "groups" {
  description = <<-EOT
    Managed node groups by name. The image follows from the first instance type: AL2023, for ARM where the family is Graviton's, with
    NVIDIA's driver and a taint `nvidia.com/gpu` where it has GPUs. `min_size` may be 0, but nothing scales a group up by itself: that is
    Karpenter's work. These groups are for what must be there before Karpenter is, and for capacity blocks.
  EOT
  type = map(object({
    instance_types = list(string)
    min_size       = number
    max_size       = number
    capacity_type  = optional(string, "ON_DEMAND")
    disk_gib       = optional(number, 50)
    labels         = optional(map(string), {})
  }))

  validation {
    condition     = alltrue([for group in values(var.groups) : group.min_size >= 0 && group.max_size >= max(group.min_size, 1)])
    error_message = "min_size is 0 or more, max_size 1 or more and not below it."
  }

  validation {
    condition     = alltrue([for group in values(var.groups) : contains(["ON_DEMAND", "SPOT"], group.capacity_type)])
    error_message = "capacity_type is ON_DEMAND or SPOT."
  }

  validation {
    condition     = alltrue([for group in values(var.groups) : group.capacity_type != "SPOT" || length(group.instance_types) >= 3])
    error_message = "A Spot group with fewer than three instance types is often without a node."
  }

  validation {
    condition = alltrue([
      for group in values(var.groups) : length(distinct([
        for type in group.instance_types :
        "${can(regex("^(g|gr|p)[0-9]", type))} ${can(regex("^[a-z]+[0-9]+[a-z]*g[a-z]*\\.", type))}"
      ])) == 1
    ])
    error_message = "The instance types of a group share one image: all with GPUs or none, all Graviton or none."
  }
}

variable "kms_key_arn" {
  description = "Key for the nodes' disks."
  type        = string
}

variable "tags" {
  description = "Tags of instances and disks, which a provider's default tags do not reach through a launch template."
  type        = map(string)
  default     = {}
}

variable "permissions_boundary_arn" {
  description = "Boundary of the nodes' role; bootstrap makes it."
  type        = string
}
