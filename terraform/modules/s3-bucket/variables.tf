variable "name" {
  description = "Name of the bucket; unique in the world, so end it with the account's id."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.name))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits and hyphens."
  }
}

variable "kms_key_arn" {
  description = "Key for all objects. Null: SSE-S3, for access logs only, since load balancers deliver to nothing else."
  type        = string
}

variable "access_log" {
  description = "Bucket that takes the access logs, under `s3/<name>/`. Null: none, for that bucket itself."
  type = object({
    bucket = string
  })
}

variable "log_deliveries" {
  description = "Services that may put logs here, each with its prefix: `{\"logging.s3.amazonaws.com\" = \"s3/\"}`."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for prefix in values(var.log_deliveries) : endswith(prefix, "/")])
    error_message = "A prefix ends with /, so that a service writes below its own folder only."
  }
}

variable "noncurrent_days" {
  description = "Days that a deleted or replaced object can still be brought back."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "At least a day, or versioning protects nothing."
  }
}

variable "expire_days" {
  description = "Days after which objects go; for logs. Null: never, which is right for artifacts: a hit is as old as its first night."
  type        = number
  default     = null
}

variable "archives" {
  description = <<-EOT
    What moves to Glacier Instant Retrieval, by name: objects that lie under `prefix` and carry all of `tags`, after `days`; their
    deleted versions go after `noncurrent_days`. A tag is asked for because a prefix alone cannot tell a checkpoint from the model beside it.
  EOT
  type = map(object({
    prefix          = string
    tags            = map(string)
    days            = number
    noncurrent_days = number
    storage_class   = optional(string, "GLACIER_IR")
  }))
  default = {}

  validation {
    condition     = alltrue([for one in values(var.archives) : length(one.tags) > 0])
    error_message = "An archive rule needs a tag: by prefix alone it would catch models too."
  }

  validation {
    condition     = alltrue([for one in values(var.archives) : one.storage_class == "GLACIER_IR"])
    error_message = "Only GLACIER_IR: the other Glacier classes must be restored before they can be read, and what wants to read here does not know that."
  }
}
