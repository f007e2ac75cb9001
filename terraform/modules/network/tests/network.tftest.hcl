mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { region = "eu-central-1" }
  }
  mock_resource "aws_vpc_endpoint" {
    defaults = { cidr_blocks = ["52.219.0.0/16", "3.5.0.0/19"] }
  }
}

variables {
  name                     = "wmtp-test"
  zones                    = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  nat_per_zone             = true
  endpoints_per_zone       = true
  kms_key_arn              = "arn:aws:kms:eu-central-1:111122223333:key/cluster"
  permissions_boundary_arn = "arn:aws:iam::111122223333:policy/wmtp-boundary"
}

run "three_zones_that_do_not_overlap" {
  command = apply

  assert {
    condition = alltrue([
      for subnets in [aws_subnet.private, aws_subnet.public, aws_subnet.database] : join(" ", [for subnet in subnets : subnet.availability_zone]) == join(" ", var.zones)
    ])
    error_message = "There must be a subnet of each kind in each of the three zones."
  }

  assert {
    condition = sort([for subnet in merge(
      { for zone, subnet in aws_subnet.private : "private-${zone}" => subnet },
      { for zone, subnet in aws_subnet.public : "public-${zone}" => subnet },
      { for zone, subnet in aws_subnet.database : "database-${zone}" => subnet },
      ) : subnet.cidr_block]) == sort([
      "10.40.0.0/18", "10.40.64.0/18", "10.40.128.0/18",
      "10.40.192.0/22", "10.40.196.0/22", "10.40.200.0/22",
      "10.40.204.0/24", "10.40.205.0/24", "10.40.206.0/24",
    ])
    error_message = "The nine blocks must be these, which do not overlap."
  }
}

run "nodes_have_no_public_address" {
  command = apply

  assert {
    condition = alltrue(concat(
      [for subnet in aws_subnet.private : subnet.map_public_ip_on_launch != true],
      [for subnet in aws_subnet.public : subnet.map_public_ip_on_launch == false],
    ))
    error_message = "No subnet may hand out public addresses."
  }

  assert {
    condition     = alltrue([for zone, route in aws_route.nat : route.nat_gateway_id == aws_nat_gateway.this[zone].id && route.gateway_id == null])
    error_message = "A private subnet goes out through the NAT gateway of its zone."
  }

  assert {
    condition     = alltrue([for one in aws_route_table_association.database : one.route_table_id == aws_route_table.database.id])
    error_message = "Databases have a route table of their own, which has no route."
  }
}

run "karpenter_and_internal_load_balancers_find_the_private_subnets" {
  command = apply

  assert {
    condition = alltrue([
      for subnet in aws_subnet.private :
      subnet.tags["karpenter.sh/discovery"] == "wmtp-test" && subnet.tags["kubernetes.io/role/internal-elb"] == "1"
    ])
    error_message = "Without these tags no node and no internal load balancer finds a subnet."
  }

  assert {
    condition     = alltrue([for subnet in aws_subnet.public : !contains(keys(subnet.tags), "karpenter.sh/discovery")])
    error_message = "Karpenter must not start nodes in a public subnet."
  }
}

run "images_tokens_and_objects_stay_inside" {
  command = apply

  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && length(aws_vpc_endpoint.s3.route_table_ids) == 3
    error_message = "The S3 endpoint must be in every private route table."
  }

  assert {
    condition     = output.s3_cidrs == tolist(["3.5.0.0/19", "52.219.0.0/16"])
    error_message = "NetworkPolicies need the addresses of S3."
  }

  assert {
    condition     = toset(keys(aws_vpc_endpoint.interface)) == toset(["ecr.api", "ecr.dkr", "sts"])
    error_message = "There must be endpoints for ECR (both) and STS."
  }

  assert {
    condition     = alltrue([for one in aws_vpc_endpoint.interface : one.private_dns_enabled && length(one.subnet_ids) == 3])
    error_message = "Endpoints answer to the service's own name, in every zone."
  }
}

run "endpoints_serve_this_account_only" {
  command = apply

  assert {
    condition = alltrue([
      for one in aws_vpc_endpoint.interface :
      jsondecode(one.policy).Statement[0].Condition.StringEquals["aws:PrincipalAccount"] == "111122223333"
    ])
    error_message = "Another account's credentials must not work through our endpoints."
  }

  assert {
    condition = jsondecode(aws_vpc_endpoint.s3.policy).Statement[0].Condition.StringEquals == {
      "aws:PrincipalAccount" = "111122223333"
      "aws:ResourceAccount"  = "111122223333"
    }
    error_message = "Objects must not be carried into another account's bucket."
  }

  assert {
    condition = jsondecode(aws_vpc_endpoint.s3.policy).Statement[1].Resource == [
      "arn:aws:s3:::prod-eu-central-1-starport-layer-bucket", "arn:aws:s3:::prod-eu-central-1-starport-layer-bucket/*",
    ]
    error_message = "Beside our own buckets only ECR's layers may be read."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.endpoints.cidr_ipv4 == "10.40.0.0/16" && aws_vpc_security_group_ingress_rule.endpoints.to_port == 443
    error_message = "Endpoints take HTTPS from the VPC and nothing else."
  }
}

run "the_default_security_group_is_closed" {
  command = plan

  assert {
    condition     = length(coalesce(aws_default_security_group.this.ingress, [])) == 0 && length(coalesce(aws_default_security_group.this.egress, [])) == 0
    error_message = "The default security group must have no rules."
  }
}

run "traffic_is_logged_encrypted_for_a_year" {
  command = apply

  assert {
    condition     = aws_flow_log.this.traffic_type == "ALL" && aws_flow_log.this.log_destination == aws_cloudwatch_log_group.flow.arn
    error_message = "All traffic must be logged."
  }

  assert {
    condition     = aws_cloudwatch_log_group.flow.retention_in_days >= 365 && aws_cloudwatch_log_group.flow.kms_key_id == var.kms_key_arn
    error_message = "Flow logs are kept a year, encrypted with our key."
  }

  assert {
    condition     = aws_iam_role.flow.permissions_boundary == var.permissions_boundary_arn
    error_message = "Every role has the boundary."
  }
}

run "one_nat_gateway_serves_all_zones_where_that_is_asked" {
  command = apply

  variables {
    nat_per_zone       = false
    endpoints_per_zone = false
  }

  assert {
    condition     = keys(aws_nat_gateway.this) == ["eu-central-1a"] && length(aws_route.nat) == 3
    error_message = "One gateway, and a route to it from each zone."
  }

  assert {
    condition     = alltrue([for one in aws_vpc_endpoint.interface : length(one.subnet_ids) == 1])
    error_message = "One zone's endpoints serve all."
  }
}

run "two_zones_are_refused" {
  command = plan

  variables {
    zones = ["eu-central-1a", "eu-central-1a", "eu-central-1b"]
  }

  expect_failures = [var.zones]
}

run "a_small_block_is_refused" {
  command = plan

  variables {
    cidr = "10.0.0.0/20"
  }

  expect_failures = [var.cidr]
}

run "an_open_bucket_list_is_refused" {
  command = plan

  variables {
    readable_buckets = ["*"]
  }

  expect_failures = [var.readable_buckets]
}
