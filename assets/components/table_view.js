// table_view
