mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  cluster_name             = "wmtp-test"
  kubernetes_version       = "1.35"
  subnet_ids               = ["subnet-a", "subnet-b", "subnet-c"]
  kms_key_arn              = "arn:aws:kms:eu-central-1:111122223333:key/cluster"
  permissions_boundary_arn = "arn:aws:iam::111122223333:policy/wmtp-boundary"
  tags                     = { project = "wmtp" }
  groups = {
    system   = { instance_types = ["m7i.large"], min_size = 2, max_size = 4 }
    graviton = { instance_types = ["m7g.large"], min_size = 1, max_size = 1 }
    gpu      = { instance_types = ["g6.xlarge", "g5.xlarge", "g6e.xlarge"], min_size = 0, max_size = 5, capacity_type = "SPOT" }
    armgpu   = { instance_types = ["g5g.xlarge"], min_size = 0, max_size = 1 }
  }
}

run "the_image_follows_from_the_instance_type" {
  command = plan

  assert {
    condition = {
      for name, group in aws_eks_node_group.this : name => group.ami_type
      } == {
      system   = "AL2023_x86_64_STANDARD"
      graviton = "AL2023_ARM_64_STANDARD"
      gpu      = "AL2023_x86_64_NVIDIA"
      armgpu   = "AL2023_ARM_64_NVIDIA"
    }
    error_message = "GPU types need the image with the driver, Graviton types the one for ARM."
  }

  assert {
    condition = {
      for name, group in aws_eks_node_group.this : name => join(",", [for taint in group.taint : "${taint.key}:${taint.effect}"])
      } == {
      system   = ""
      graviton = ""
      gpu      = "nvidia.com/gpu:NO_SCHEDULE"
      armgpu   = "nvidia.com/gpu:NO_SCHEDULE"
    }
    error_message = "Only what asks for a GPU may run on a GPU node."
  }
}

run "credentials_of_a_node_are_out_of_reach_for_pods" {
  command = plan

  assert {
    condition = alltrue([
      for template in aws_launch_template.this :
      template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1
    ])
    error_message = "IMDSv2 must be required, with one hop."
  }
}

run "disks_are_encrypted_with_our_key" {
  command = plan

  assert {
    condition = alltrue([
      for template in aws_launch_template.this :
      tobool(template.block_device_mappings[0].ebs[0].encrypted) && template.block_device_mappings[0].ebs[0].kms_key_id == var.kms_key_arn &&
      template.block_device_mappings[0].ebs[0].volume_type == "gp3"
    ])
    error_message = "Disks are gp3 and encrypted with our key."
  }
}

run "nobody_logs_in_by_key" {
  command = plan

  assert {
    condition     = alltrue([for group in aws_eks_node_group.this : length(group.remote_access) == 0])
    error_message = "No SSH: Session Manager needs no open port."
  }
}

run "gpu_capacity_starts_at_nothing_on_spot" {
  command = plan

  assert {
    condition = (
      aws_eks_node_group.this["gpu"].scaling_config[0].min_size == 0 && aws_eks_node_group.this["gpu"].scaling_config[0].max_size == 5 &&
      aws_eks_node_group.this["gpu"].capacity_type == "SPOT" && aws_eks_node_group.this["system"].capacity_type == "ON_DEMAND"
    )
    error_message = "GPU nodes from 0 to N on Spot; system nodes on demand."
  }
}

run "costs_and_roles_can_be_told_apart" {
  command = plan

  assert {
    condition = alltrue(flatten([
      for template in aws_launch_template.this : [for one in template.tag_specifications : one.tags["project"] == "wmtp"]
    ]))
    error_message = "Instances and disks carry the tags."
  }

  assert {
    condition     = aws_iam_role.node.permissions_boundary == var.permissions_boundary_arn
    error_message = "Every role has the boundary."
  }

  assert {
    condition = toset(keys(aws_iam_role_policy_attachment.node)) == toset([
      "AmazonEC2ContainerRegistryPullOnly", "AmazonEKSWorkerNodePolicy", "AmazonSSMManagedInstanceCore",
    ])
    error_message = "A node pulls images, joins and can be reached by Session Manager, and no more."
  }
}

run "mixed_images_are_refused" {
  command = plan

  variables {
    groups = { mixed = { instance_types = ["m7i.large", "g6.xlarge"], min_size = 0, max_size = 1 } }
  }

  expect_failures = [var.groups]
}

run "spot_with_one_type_is_refused" {
  command = plan

  variables {
    groups = { gpu = { instance_types = ["g6.xlarge"], min_size = 0, max_size = 1, capacity_type = "SPOT" } }
  }

  expect_failures = [var.groups]
}
