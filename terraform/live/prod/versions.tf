terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.28"
    }
    random = {
      source  = "hashicorp/random"
      version = "~> 3.7"
    }
  }

  # Bucket, region and key come from bootstrap: terraform init -backend-config=../state.s3.tfbackend
  backend "s3" {
    key          = "live/prod.tfstate"
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = {
      deployment = "wmtp-prod"
      managed-by = "terraform/live/prod"
    }
  }
}
