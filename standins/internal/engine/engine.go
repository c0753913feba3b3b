// Package engine watches the Pulumi engine that started a plugin.
package engine

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil"
)

// every is how long a plugin may outlive an engine that was killed. The SDK's own watch takes five minutes.
const every = 5 * time.Second

// Watch calls gone once when the engine at address answers no more.
func Watch(ctx context.Context, address string, gone func()) error {
	if err := rpcutil.Healthcheck(ctx, address, every, gone); err != nil {
		return fmt.Errorf("watching the engine at %s: %w", address, err)
	}
	return nil
}

// ExitWith ends this process soon after the engine, whose address is the last argument of a resource plugin's command
// line.
func ExitWith(args []string) error {
	address := args[len(args)-1]
	if !strings.Contains(address, ":") {
		return nil // started by hand
	}
	return Watch(context.Background(), address, func() { os.Exit(1) })
}
