mock_provider "aws" {}

variables {
  name        = "wmtp-test"
  monthly_usd = 600
  anomaly_usd = 40
  emails      = ["ml@example.com"]
  tag_key     = "deployment"
  tag_value   = "wmtp-test"
}

run "somebody_is_told_before_and_when_the_money_is_gone" {
  command = plan

  assert {
    condition = toset([for one in aws_budgets_budget.this.notification : "${one.notification_type} ${one.threshold}"]) == toset([
      "ACTUAL 50", "ACTUAL 80", "ACTUAL 100", "FORECASTED 100",
    ])
    error_message = "At 50, 80 and 100 percent, and when 100 is foreseen."
  }

  assert {
    condition     = alltrue([for one in aws_budgets_budget.this.notification : contains(one.subscriber_email_addresses, "ml@example.com")])
    error_message = "Each notice has a reader."
  }

  assert {
    condition     = aws_budgets_budget.this.limit_amount == "600" && one(aws_budgets_budget.this.cost_filter).values[0] == "user:deployment$wmtp-test"
    error_message = "The budget is of this deployment's costs."
  }
}

run "an_unusual_day_is_told" {
  command = apply

  assert {
    condition = (
      jsondecode(aws_ce_anomaly_monitor.this.monitor_specification).Tags.Values == ["wmtp-test"] &&
      one([for one in aws_ce_anomaly_subscription.this.subscriber : one.address]) == "ml@example.com" &&
      strcontains(jsonencode(aws_ce_anomaly_subscription.this.threshold_expression), "\"40\"")
    )
    error_message = "By this deployment's tag, from 40 dollars on."
  }
}

run "nobody_to_tell_is_refused" {
  command = plan

  variables {
    emails = []
  }

  expect_failures = [var.emails]
}
