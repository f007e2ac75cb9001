mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  name                     = "wmtp-test"
  tags                     = { deployment = "wmtp-test" }
  subnet_ids               = ["subnet-a", "subnet-b", "subnet-c"]
  kms_key_arn              = "arn:aws:kms:eu-central-1:111122223333:key/cluster"
  permissions_boundary_arn = "arn:aws:iam::111122223333:policy/wmtp-boundary"
  access = {
    platform = {
      principal_arn = "arn:aws:iam::111122223333:role/platform"
      policy        = "AmazonEKSClusterAdminPolicy"
    }
    learners = {
      principal_arn = "arn:aws:iam::111122223333:role/learners"
      policy        = "AmazonEKSViewPolicy"
      namespaces    = ["wmtp"]
    }
  }
}

run "the_api_is_private" {
  command = plan

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access && !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "The API must be reached from within the VPC only."
  }
}

run "the_internet_is_refused" {
  command = plan

  variables {
    public_access_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.public_access_cidrs]
}

run "an_office_may_be_let_in" {
  command = plan

  variables {
    public_access_cidrs = ["203.0.113.0/24"]
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access && join(",", aws_eks_cluster.this.vpc_config[0].public_access_cidrs) == "203.0.113.0/24"
    error_message = "The named block, and nothing else."
  }
}

run "access_is_by_entries_only" {
  command = plan

  assert {
    condition = (
      aws_eks_cluster.this.access_config[0].authentication_mode == "API" &&
      aws_eks_cluster.this.access_config[0].bootstrap_cluster_creator_admin_permissions == false
    )
    error_message = "No aws-auth map, and whoever makes the cluster is not its administrator for that."
  }

  assert {
    condition = (
      aws_eks_access_policy_association.this["platform"].access_scope[0].type == "cluster" &&
      aws_eks_access_policy_association.this["learners"].access_scope[0].type == "namespace" &&
      join(",", aws_eks_access_policy_association.this["learners"].access_scope[0].namespaces) == "wmtp" &&
      endswith(aws_eks_access_policy_association.this["learners"].policy_arn, "/AmazonEKSViewPolicy")
    )
    error_message = "An entry with namespaces holds in them only."
  }
}

run "users_with_keys_are_refused" {
  command = plan

  variables {
    access = { somebody = { principal_arn = "arn:aws:iam::111122223333:user/somebody", policy = "AmazonEKSViewPolicy" } }
  }

  expect_failures = [var.access]
}

run "all_logs_are_kept_encrypted_for_a_year" {
  command = plan

  assert {
    condition     = join(",", sort(aws_eks_cluster.this.enabled_cluster_log_types)) == "api,audit,authenticator,controllerManager,scheduler"
    error_message = "All five logs of the control plane."
  }

  assert {
    condition = (
      aws_cloudwatch_log_group.this.name == "/aws/eks/wmtp-test/cluster" &&
      aws_cloudwatch_log_group.this.retention_in_days >= 365 && aws_cloudwatch_log_group.this.kms_key_id == var.kms_key_arn
    )
    error_message = "The group that EKS writes to, encrypted, for a year."
  }
}

run "kubernetes_secrets_are_encrypted_with_our_key" {
  command = plan

  assert {
    condition = (
      join(",", aws_eks_cluster.this.encryption_config[0].resources) == "secrets" &&
      aws_eks_cluster.this.encryption_config[0].provider[0].key_arn == var.kms_key_arn
    )
    error_message = "Secrets must be encrypted with our key."
  }
}

run "the_cluster_does_not_go_or_grow_dear_by_itself" {
  command = plan

  assert {
    condition     = aws_eks_cluster.this.deletion_protection && aws_eks_cluster.this.upgrade_policy[0].support_type == "STANDARD"
    error_message = "Deletion protection on; no extended support."
  }

  assert {
    condition     = aws_eks_cluster.this.version == "1.35"
    error_message = "The default is 1.35."
  }
}

run "an_unchecked_version_is_refused" {
  command = plan

  variables {
    kubernetes_version = "1.30"
  }

  expect_failures = [var.kubernetes_version]
}

run "network_policies_have_an_effect" {
  command = plan

  assert {
    condition     = jsondecode(aws_eks_addon.before_nodes["vpc-cni"].configuration_values).enableNetworkPolicy == "true"
    error_message = "Without the CNI's policy engine NetworkPolicies are accepted and do nothing."
  }

  assert {
    condition     = contains(keys(aws_eks_addon.before_nodes), "eks-pod-identity-agent") && length(aws_eks_addon.on_nodes) == 3
    error_message = "The identity agent comes before nodes; CoreDNS, the volume driver and the metrics server are there."
  }
}

run "volumes_carry_the_tag_by_which_costs_are_told_apart" {
  command = plan

  assert {
    condition     = jsondecode(aws_eks_addon.on_nodes["aws-ebs-csi-driver"].configuration_values).controller.extraVolumeTags == { deployment = "wmtp-test" }
    error_message = "Volumes of pods carry the deployment's tag."
  }
}

run "nodes_are_found_and_roles_are_bounded" {
  command = plan

  assert {
    condition     = aws_ec2_tag.discovery.key == "karpenter.sh/discovery" && aws_ec2_tag.discovery.value == "wmtp-test"
    error_message = "Karpenter finds the security group by this tag."
  }

  assert {
    condition     = aws_iam_role.cluster.permissions_boundary == var.permissions_boundary_arn
    error_message = "Every role has the boundary."
  }
}
