variable "name" {
  description = "Name of the deployment: of the cluster, and the beginning of all else."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "3 to 20 lower-case letters, digits and hyphens: a bucket's name is this, a word, and the account's id."
  }
}

variable "permissions_boundary_arn" {
  description = "Boundary of all roles that are made here: this environment's of bootstrap's output `permissions_boundary_arns`."
  type        = string

  validation {
    condition     = can(regex("^arn:[a-z-]+:iam::[0-9]{12}:policy/", var.permissions_boundary_arn))
    error_message = "The ARN of an IAM policy: `terraform output permissions_boundary_arns` in bootstrap."
  }
}

variable "is_highly_available" {
  description = "True: a NAT gateway and endpoints in each zone, a standby database, all traffic in the flow logs. False: one of each, and refused traffic only."
  type        = bool
}

variable "deletion_protection" {
  description = "Refuse to delete cluster and database until this is switched off."
  type        = bool
  default     = true
}

variable "cidr" {
  description = "Block of the network, a /16."
  type        = string
  default     = "10.40.0.0/16"
}

variable "zones" {
  description = "Three zones that have the GPU types you want (`aws ec2 describe-instance-type-offerings`)."
  type        = list(string)
}

variable "kubernetes_version" {
  description = "Version of the control plane."
  type        = string
  default     = "1.35"
}

variable "node_kubernetes_version" {
  description = "Version of the node groups while an upgrade is under way. Null: the control plane's."
  type        = string
  default     = null
}

variable "addon_versions" {
  description = "Versions of EKS add-ons to pin."
  type        = map(string)
  default     = {}
}

variable "public_access_cidrs" {
  description = "Blocks from which the Kubernetes API may be reached over the internet. Empty: from within the VPC only."
  type        = list(string)
  default     = []
}

variable "access" {
  description = "Who may use the Kubernetes API, as in the module eks."
  type = map(object({
    principal_arn = string
    policy        = string
    namespaces    = optional(list(string), [])
  }))

  validation {
    condition     = anytrue([for one in values(var.access) : one.policy == "AmazonEKSClusterAdminPolicy"])
    error_message = "Somebody must have AmazonEKSClusterAdminPolicy, or nobody can install the charts: whoever makes the cluster is not its administrator."
  }
}

variable "system_nodes" {
  description = "Nodes for Karpenter, the controllers, Airflow and MLflow, as a group of the module node-groups."
  type = object({
    instance_types = list(string)
    min_size       = number
    max_size       = number
    capacity_type  = optional(string, "ON_DEMAND")
    disk_gib       = optional(number, 50)
    labels         = optional(map(string), { "wmtp.io/pool" = "system" })
  })

  validation {
    condition     = var.system_nodes.min_size >= 2
    error_message = "At least two: Karpenter runs twice, and never on nodes of its own."
  }
}

variable "more_node_groups" {
  description = "Further managed groups, as for a capacity block. GPU nodes of every day are Karpenter's."
  type = map(object({
    instance_types = list(string)
    min_size       = number
    max_size       = number
    capacity_type  = optional(string, "ON_DEMAND")
    disk_gib       = optional(number, 200)
    labels         = optional(map(string), {})
  }))
  default = {}
}

variable "database" {
  description = "Size of PostgreSQL, and the days of its backups."
  type = object({
    instance_class  = string
    backup_days     = number
    storage_gib     = optional(number, 20)
    max_storage_gib = optional(number, 200)
  })
}

variable "password_version" {
  description = "Raise it to make the databases' passwords anew; then run the databases' Job again."
  type        = number
  default     = 1
}

variable "data_buckets" {
  description = "Buckets, also of other accounts, from which recipes pull data and models; bootstrap must name them too."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for bucket in var.data_buckets : !strcontains(bucket, "*")])
    error_message = "Name each bucket in full."
  }
}

variable "noncurrent_days" {
  description = "Days that a deleted or replaced object can be brought back."
  type        = number
  default     = 30
}

variable "log_days" {
  description = "Days that task logs and access logs are kept."
  type        = number
  default     = 400
}

variable "dns" {
  description = "Domain and its Route 53 zone, and the load balancer once the charts have made it. Null: no certificate, and the charts serve nothing outside the cluster."
  type = object({
    domain  = string
    zone_id = string
    load_balancer = optional(object({
      dns_name = string
      zone_id  = string
    }))
  })
  default = null
}

variable "budget" {
  description = "What a month may cost, from what an unusual day is told, and to whom."
  type = object({
    monthly_usd = number
    anomaly_usd = number
    emails      = set(string)
  })
}
