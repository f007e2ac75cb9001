variable "region" {
  description = "Region of the deployment."
  type        = string
}

variable "zones" {
  description = "Three zones of the region that have the GPU types you want."
  type        = list(string)
}

variable "permissions_boundary_arn" {
  description = "Of bootstrap's output `permissions_boundary_arns`, the one of dev."
  type        = string
}

variable "access" {
  description = "Who may use the Kubernetes API: an IAM role, an EKS access policy, and namespaces (none: the whole cluster)."
  type = map(object({
    principal_arn = string
    policy        = string
    namespaces    = optional(list(string), [])
  }))
}

variable "dns" {
  description = "Domain and its Route 53 zone; the load balancer once the charts have made it."
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

variable "data_buckets" {
  description = "Buckets from which recipes pull data and models; bootstrap must name them too."
  type        = set(string)
  default     = []
}

variable "budget_emails" {
  description = "Who is told of money."
  type        = set(string)
}
