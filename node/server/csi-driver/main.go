// Command csi-driver is a CSI driver for tests, with volumes that live as long as their pod: a folder each, in which a
// file tells for which pod it was made.
//
//	csi-driver NAME NODE FOLDER     FOLDER is the kubelet's, /var/lib/kubelet
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer
	name, node, socket, volumes string
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: csi-driver NAME NODE FOLDER")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "csi-driver:", err)
		os.Exit(1)
	}
}

func run(name, node, kubelet string) error {
	plugin := filepath.Join(kubelet, "plugins", name)
	d := &driver{name: name, node: node}
	d.socket, d.volumes = filepath.Join(plugin, "csi.sock"), filepath.Join(plugin, "volumes")
	if err := os.MkdirAll(d.volumes, 0o700); err != nil {
		return err
	}
	serving, err := listen(d.socket)
	if err != nil {
		return err
	}
	registering, err := listen(filepath.Join(kubelet, "plugins_registry", name+"-reg.sock"))
	if err != nil {
		return err
	}
	calls, registrations := grpc.NewServer(), grpc.NewServer()
	csi.RegisterIdentityServer(calls, d)
	csi.RegisterNodeServer(calls, d)
	registration.RegisterRegistrationServer(registrations, d)
	ended := make(chan error, 2)
	go func() { ended <- calls.Serve(serving) }()
	go func() { ended <- registrations.Serve(registering) }()
	return <-ended
}

// listen makes a socket in the place of that of a driver that has ended.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: d.name, Endpoint: d.socket, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (d *driver) NotifyRegistrationStatus(
	_ context.Context, status *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	fmt.Println("registered:", status.PluginRegistered, status.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "1"}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

func (d *driver) NodeGetCapabilities(
	context.Context, *csi.NodeGetCapabilitiesRequest,
) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

func (d *driver) NodePublishVolume(
	_ context.Context, request *csi.NodePublishVolumeRequest,
) (*csi.NodePublishVolumeResponse, error) {
	volume := filepath.Join(d.volumes, request.VolumeId)
	if err := os.MkdirAll(volume, 0o755); err != nil {
		return nil, err
	}
	pod := request.VolumeContext["csi.storage.k8s.io/pod.name"]
	if err := os.WriteFile(filepath.Join(volume, "pod"), []byte(pod+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(request.TargetPath, 0o755); err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, unix.Mount(volume, request.TargetPath, "", unix.MS_BIND, "")
}

func (d *driver) NodeUnpublishVolume(
	_ context.Context, request *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	// Detached: gVisor takes a mount that is a pod's and the node's for busy (vfs.arePropMountsBusy).
	err := unix.Unmount(request.TargetPath, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // it is unmounted already
		return nil, err
	}
	if err := os.RemoveAll(request.TargetPath); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, os.RemoveAll(filepath.Join(d.volumes, request.VolumeId))
}
