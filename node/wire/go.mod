module gvisor-k3s/wire

go 1.26.0
