module gvisor-k3s/relay

go 1.26.5
