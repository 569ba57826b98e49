// live_chart
