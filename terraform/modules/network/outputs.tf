output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "zones" {
  description = "The three zones."
  value       = local.zones
}

output "private_subnet_ids" {
  description = "Subnets of nodes and pods, in the order of the zones. They are known only when there is a way out."
  value       = [for zone in local.zones : aws_subnet.private[zone].id]
  depends_on  = [aws_route.nat, aws_vpc_endpoint.s3]
}

output "database_subnet_ids" {
  description = "Subnets without a way out of the VPC."
  value       = [for zone in local.zones : aws_subnet.database[zone].id]
}
