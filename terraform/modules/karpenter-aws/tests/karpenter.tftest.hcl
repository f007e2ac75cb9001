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
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/wmtp-test-karpenter-node" }
  }
  mock_resource "aws_sqs_queue" {
    defaults = { arn = "arn:aws:sqs:eu-central-1:111122223333:wmtp-test-karpenter" }
  }
}

variables {
  cluster_name             = "wmtp-test"
  kms_key_arn              = "arn:aws:kms:eu-central-1:111122223333:key/cluster"
  permissions_boundary_arn = "arn:aws:iam::111122223333:policy/wmtp-boundary"
}

run "every_kind_of_interruption_reaches_the_queue" {
  command = apply

  assert {
    condition = toset([for rule in aws_cloudwatch_event_rule.interruptions : one(jsondecode(rule.event_pattern).detail-type)]) == toset([
      "EC2 Spot Instance Interruption Warning", "EC2 Instance Rebalance Recommendation", "EC2 Instance State-change Notification",
      "EC2 Capacity Reservation Instance Interruption Warning", "AWS Health Event",
    ])
    error_message = "All five kinds of notice."
  }

  assert {
    condition     = alltrue([for target in aws_cloudwatch_event_target.interruptions : target.arn == aws_sqs_queue.interruptions.arn]) && length(aws_cloudwatch_event_target.interruptions) == 5
    error_message = "Each rule sends to the queue."
  }
}

run "the_queue_is_encrypted_and_takes_our_rules_only" {
  command = apply

  assert {
    condition     = aws_sqs_queue.interruptions.sqs_managed_sse_enabled
    error_message = "The queue must be encrypted."
  }

  assert {
    condition = alltrue([
      for one in jsondecode(aws_sqs_queue_policy.interruptions.policy).Statement :
      length(one.Condition.ArnEquals["aws:SourceArn"]) == 5 if one.Effect == "Allow"
    ])
    error_message = "Only our five rules may send."
  }

  assert {
    condition     = contains([for one in jsondecode(aws_sqs_queue_policy.interruptions.policy).Statement : "${one.Effect} ${one.Sid}"], "Deny TlsOnly")
    error_message = "Plain HTTP must be refused."
  }
}

run "the_controller_ends_its_own_nodes_only" {
  command = apply

  assert {
    condition = alltrue([
      for one in jsondecode(module.controller.policy).Statement :
      one.Condition.StringEquals["aws:ResourceTag/kubernetes.io/cluster/wmtp-test"] == "owned"
      if strcontains(jsonencode(one.Action), "TerminateInstances")
    ])
    error_message = "An instance without this cluster's tag must be out of reach."
  }

  assert {
    condition = [
      for one in jsondecode(module.controller.policy).Statement : [one.Resource, one.Condition.StringEquals["iam:PassedToService"]]
      if one.Action == "iam:PassRole"
    ] == [["arn:aws:iam::111122223333:role/wmtp-test-karpenter-node", "ec2.amazonaws.com"]]
    error_message = "It may pass the nodes' role to EC2, and no other."
  }

  assert {
    condition     = length(module.controller.policy) < 10240
    error_message = "IAM takes 10240 characters of inline policies for a role."
  }
}

run "nodes_join_and_can_do_little" {
  command = apply

  assert {
    condition     = aws_eks_access_entry.node.type == "EC2_LINUX" && aws_eks_access_entry.node.principal_arn == aws_iam_role.node.arn
    error_message = "Without the entry no node joins."
  }

  assert {
    condition = toset(keys(aws_iam_role_policy_attachment.node)) == toset([
      "AmazonEC2ContainerRegistryPullOnly", "AmazonEKSWorkerNodePolicy", "AmazonSSMManagedInstanceCore",
    ])
    error_message = "A node pulls images, joins and can be reached by Session Manager, and no more."
  }

  assert {
    condition     = aws_iam_role.node.permissions_boundary == var.permissions_boundary_arn
    error_message = "Every role has the boundary."
  }
}
