variable "name" {
  description = "Alias of the key, without `alias/`."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9/_-]+$", var.name)) && !startswith(var.name, "aws/")
    error_message = "The alias takes letters, digits, / _ and -, and must not begin with aws/, which is Amazon's."
  }
}

variable "description" {
  description = "What the key protects."
  type        = string
}

variable "via_services" {
  description = "Services through which principals of this account may use the key, as in `s3` or `secretsmanager`."
  type        = set(string)
  default     = []
}

variable "log_group_prefixes" {
  description = "Beginnings of the names of log groups that CloudWatch may encrypt with the key."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for prefix in var.log_group_prefixes : length(prefix) > 1 && !strcontains(prefix, "*")])
    error_message = "A prefix that is empty, / or holds * would lend the key to every log group."
  }
}

variable "service_linked_roles" {
  description = "Service-linked roles that use the key themselves, by service: `{\"autoscaling.amazonaws.com\" = \"AWSServiceRoleForAutoScaling\"}`. They must exist."
  type        = map(string)
  default     = {}
}
