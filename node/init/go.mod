module gvisor-k3s/node/init

go 1.26.0

require (
	github.com/google/renameio/v2 v2.0.2
	github.com/moby/sys/mountinfo v0.7.2
	github.com/vishvananda/netlink v1.3.1
	golang.org/x/sys v0.48.0
	gopkg.in/natefinch/lumberjack.v2 v2.2.1
	gvisor-k3s/wire v0.0.0
)

require (
	github.com/vishvananda/netns v0.0.5 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace gvisor-k3s/wire => ../wire
