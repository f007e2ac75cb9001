mock_provider "aws" {
  mock_resource "aws_acm_certificate" {
    defaults = {
      domain_validation_options = [
        { domain_name = "airflow.ml.example.com", resource_record_name = "_a.ml.example.com", resource_record_type = "CNAME", resource_record_value = "a.acm" },
        { domain_name = "mlflow.ml.example.com", resource_record_name = "_m.ml.example.com", resource_record_type = "CNAME", resource_record_value = "m.acm" },
      ]
    }
  }
}

variables {
  domain  = "ml.example.com"
  zone_id = "Z1"
  hosts   = ["mlflow", "airflow"]
}

run "the_certificate_is_for_the_named_hosts" {
  command = apply

  assert {
    condition = (
      aws_acm_certificate.this.domain_name == "airflow.ml.example.com" &&
      join(",", aws_acm_certificate.this.subject_alternative_names) == "mlflow.ml.example.com" && aws_acm_certificate.this.validation_method == "DNS"
    )
    error_message = "These two names, proved by DNS."
  }

  assert {
    condition     = { for name, record in aws_route53_record.validation : name => record.name } == { "airflow.ml.example.com" = "_a.ml.example.com", "mlflow.ml.example.com" = "_m.ml.example.com" }
    error_message = "Each name is proved by its own record."
  }

  assert {
    condition     = length(aws_route53_record.hosts) == 0
    error_message = "Before the load balancer there is nothing to point at."
  }
}

run "no_other_authority_may_issue" {
  command = apply

  assert {
    condition     = contains(aws_route53_record.caa[0].records, "0 issue \"amazon.com\"") && contains(aws_route53_record.caa[0].records, "0 issuewild \";\"")
    error_message = "Amazon alone, and no wildcard."
  }
}

run "hosts_follow_the_load_balancer" {
  command = apply

  variables {
    load_balancer = { dns_name = "internal-k8s-wmtp.eu-central-1.elb.amazonaws.com", zone_id = "Z2" }
  }

  assert {
    condition     = toset(keys(aws_route53_record.hosts)) == toset(["airflow.ml.example.com", "mlflow.ml.example.com"])
    error_message = "Each host has a record."
  }

  assert {
    condition     = alltrue([for record in aws_route53_record.hosts : record.alias[0].zone_id == "Z2"])
    error_message = "They are aliases of the load balancer."
  }
}

run "a_wildcard_is_refused" {
  command = plan

  variables {
    hosts = ["*"]
  }

  expect_failures = [var.hosts]
}
