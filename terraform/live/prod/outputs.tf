output "platform" {
  description = "What the charts need: `terraform output -json platform`."
  value       = module.stack
}
