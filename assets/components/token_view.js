// token_view
