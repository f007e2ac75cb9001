output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "Subnets of nodes and pods, in the order of the zones. They are known only when there is a way out."
  value       = [for zone in var.zones : aws_subnet.private[zone].id]
  depends_on  = [aws_route.nat, aws_vpc_endpoint.s3]
}

output "database_subnet_ids" {
  description = "Subnets without a way out of the VPC."
  value       = [for zone in var.zones : aws_subnet.database[zone].id]
}

output "database_cidrs" {
  description = "Blocks of the subnets without a way out, in the order of the zones."
  value       = local.database_blocks
}

output "s3_cidrs" {
  description = "Addresses of S3 in this region, for NetworkPolicies: the gateway endpoint gives it none of the VPC's own."
  value       = sort(aws_vpc_endpoint.s3.cidr_blocks)
}

output "nat_addresses" {
  description = "Addresses from which nodes reach the internet, for allow-lists of others."
  value       = [for zone in local.nat_zones : aws_eip.nat[zone].public_ip]
}
