// plot_view
