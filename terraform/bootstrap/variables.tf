variable "region" {
  description = "Region of the state and of the deployments."
  type        = string
}

variable "prefix" {
  description = "Beginning of all names; deployments are `<prefix>-<environment>`."
  type        = string
  default     = "wmtp"

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,9}$", var.prefix))
    error_message = "2 to 10 lower-case letters and digits."
  }
}

variable "environments" {
  description = "Deployments that CI may apply, each from the GitHub environment of the same name. Give those reviewers in GitHub's settings."
  type        = set(string)
  default     = ["dev", "prod"]

  validation {
    condition     = alltrue([for name in var.environments : can(regex("^[a-z][a-z0-9]{1,7}$", name)) && !contains(["ci", "plan", "state"], name)])
    error_message = "2 to 8 lower-case letters and digits each, and neither ci, plan nor state: bootstrap has these names itself."
  }
}

variable "github_repository" {
  description = "Repository that plans and applies, as `organisation/repository`."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "One repository, organisation/repository, without patterns."
  }
}

variable "github_branch" {
  description = "Branch whose pushes may plan."
  type        = string
  default     = "main"

  validation {
    condition     = !strcontains(var.github_branch, "*")
    error_message = "One branch, without patterns."
  }
}

variable "github_oidc_provider_arn" {
  description = "GitHub's OIDC provider where the account has one already: there can be only one. Null: it is made."
  type        = string
  default     = null
}

variable "route53_zone_ids" {
  description = "Zones in which deployments may write records."
  type        = set(string)
}

variable "data_buckets" {
  description = "Buckets, also of other accounts, that deployments may be let read: what their own `data_buckets` name must be here."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for bucket in var.data_buckets : !strcontains(bucket, "*")])
    error_message = "Name each bucket in full."
  }
}

variable "service_linked_roles" {
  description = "Service-linked roles to make; take out those that the account has already (`aws iam list-roles --path-prefix /aws-service-role/`)."
  type        = set(string)
  default     = ["autoscaling.amazonaws.com", "spot.amazonaws.com"]
}
