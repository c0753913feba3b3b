module gvisor-k3s/node/init

go 1.26.0

require (
	golang.org/x/sys v0.48.0
	gopkg.in/natefinch/lumberjack.v2 v2.2.1
)
