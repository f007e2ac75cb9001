variable "name" {
  description = "Name of the deployment."
  type        = string
}

variable "monthly_usd" {
  description = "What a month may cost."
  type        = number

  validation {
    condition     = var.monthly_usd > 0
    error_message = "More than 0."
  }
}

variable "anomaly_usd" {
  description = "What an unusual day must cost more than expected before it is told."
  type        = number

  validation {
    condition     = var.anomaly_usd > 0
    error_message = "More than 0."
  }
}

variable "emails" {
  description = "Who is told."
  type        = set(string)

  validation {
    condition     = length(var.emails) > 0 && length(var.emails) <= 10 && alltrue([for email in var.emails : can(regex("^[^@ ]+@[^@ ]+$", email))])
    error_message = "One to ten addresses; an alarm that nobody gets is none."
  }
}

variable "tag_key" {
  description = "Tag by which costs are told apart. It counts once it was activated as a cost-allocation tag, in the account that pays."
  type        = string
}

variable "tag_value" {
  description = "Its value here."
  type        = string
}
