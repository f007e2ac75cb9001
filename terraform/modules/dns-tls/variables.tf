variable "domain" {
  description = "Domain below which the hosts lie, as `ml.example.com`."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9-]+\\.)+[a-z]{2,}$", var.domain))
    error_message = "A domain in lower case without a dot at its end."
  }
}

variable "zone_id" {
  description = "Public Route 53 zone of the domain; it exists already."
  type        = string
}

variable "hosts" {
  description = "Names below the domain."
  type        = set(string)

  validation {
    condition     = length(var.hosts) > 0 && alltrue([for host in var.hosts : can(regex("^[a-z0-9-]+$", host))])
    error_message = "At least one; each is a single label, never *."
  }
}

variable "restrict_authorities" {
  description = "Write a CAA record that lets Amazon alone issue certificates below the domain. Off where the domain has other certificates."
  type        = bool
  default     = true
}

variable "load_balancer" {
  description = "The load balancer that the cluster's controller has made, for the hosts' records. Null until then."
  type = object({
    dns_name = string
    zone_id  = string
  })
  default = null
}
