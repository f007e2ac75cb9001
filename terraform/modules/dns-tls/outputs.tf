output "certificate_arn" {
  description = "The certificate. It is known only when it is valid."
  value       = aws_acm_certificate_validation.this.certificate_arn
}

output "hosts" {
  description = "The names in full."
  value       = local.names
}
