module example.com/gvisor-k3s/sdk

go 1.26.0

require github.com/pulumi/pulumi/sdk/v3 v3.250.0
