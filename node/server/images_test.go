package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtimeOfImages is a container runtime that has images and containers, and nothing else.
type runtimeOfImages struct {
	cri.UnimplementedImageServiceServer
	cri.UnimplementedRuntimeServiceServer
	images     []*cri.Image
	containers []*cri.Container
	mounts     map[string][]*cri.Mount // by the container
	refuses    string                  // the image that cannot be removed
}

func (r *runtimeOfImages) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{Images: r.images}, nil
}

func (r *runtimeOfImages) RemoveImage(_ context.Context, q *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	if q.Image.Image == r.refuses {
		return nil, errors.New("it is stubborn")
	}
	r.images = slices.DeleteFunc(slices.Clone(r.images), func(i *cri.Image) bool { return i.Id == q.Image.Image })
	return &cri.RemoveImageResponse{}, nil
}

func (r *runtimeOfImages) ListContainers(
	context.Context, *cri.ListContainersRequest,
) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: r.containers}, nil
}

func (r *runtimeOfImages) ContainerStatus(
	_ context.Context, q *cri.ContainerStatusRequest,
) (*cri.ContainerStatusResponse, error) {
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Mounts: r.mounts[q.ContainerId]}}, nil
}

// serve has the runtime answer, and tells where.
func (r *runtimeOfImages) serve(t *testing.T) (endpoint string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	cri.RegisterImageServiceServer(server, r)
	cri.RegisterRuntimeServiceServer(server, r)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return "unix://" + socket
}

func someImages() *runtimeOfImages {
	image := func(id string, pinned bool, names ...string) *cri.Image {
		return &cri.Image{Id: id, RepoTags: names, Pinned: pinned, Size: 7}
	}
	mount := &cri.Mount{Image: &cri.ImageSpec{Image: "mounted"}}
	return &runtimeOfImages{
		images: []*cri.Image{
			image("runs", false, "a.test/runs:1"), image("ran", false, "a.test/ran:1"), image("mounted", false),
			image("unused", false, "a.test/unused:1", "a.test/unused:2"), image("nameless", false),
			image("imported", true, "a.test/imported:1"), image("own", true, "own.test/dns:2"),
			image("ownOld", true, "own.test/dns:1"), image("pause", true, "own.test/pause:2"),
			image("ownAndOther", true, "own.test/dns:1", "a.test/dns:1"), image("kept", false, "a.test/kept:1"),
		},
		containers: []*cri.Container{
			{Id: "1", ImageId: "runs", ImageRef: "a.test/runs:1", Image: &cri.ImageSpec{Image: "runs"}},
			{Id: "2", ImageRef: "ran", State: cri.ContainerState_CONTAINER_EXITED},
		},
		mounts: map[string][]*cri.Mount{"1": {mount, {HostPath: "/x"}}},
	}
}

func TestPrune(t *testing.T) {
	usual := []string{"--own", "own.test/"}
	for _, name := range []string{"own.test/dns:2", "own.test/pause:2", "a.test/kept:1"} {
		usual = append(usual, "--keep", name)
	}
	for _, c := range []struct {
		more []string
		want string
	}{
		{nil, "unused nameless ownOld"},
		{[]string{"--imported"}, "unused nameless imported ownOld ownAndOther"},
	} {
		r := someImages()
		before := len(r.images)
		var out bytes.Buffer
		args := slices.Concat(usual, c.more, []string{"--endpoint", r.serve(t)})
		if err := pruneCommand(t.Context(), args, &out); err != nil {
			t.Fatal(err)
		}
		var removed []pruned
		if err := json.Unmarshal(out.Bytes(), &removed); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, image := range removed {
			ids = append(ids, image.ID)
		}
		if got := strings.Join(ids, " "); got != c.want || len(r.images) != before-len(ids) {
			t.Errorf("%q: removed %s, and %d of %d stay; want %s", c.more, got, len(r.images), before, c.want)
		}
		if !slices.Equal(removed[0].Names, []string{"a.test/unused:1", "a.test/unused:2"}) || removed[0].Bytes != 7 {
			t.Errorf("got %+v", removed[0])
		}
	}
}

// One that cannot be removed keeps no other, and is told.
func TestPruneGoesOn(t *testing.T) {
	r := someImages()
	r.refuses = "unused"
	var out bytes.Buffer
	err := pruneCommand(t.Context(), []string{"--endpoint", r.serve(t)}, &out)
	if err == nil || !strings.Contains(err.Error(), "removing unused [a.test/unused:1 a.test/unused:2]") {
		t.Errorf("got %v", err)
	}
	if strings.Contains(out.String(), `"unused"`) || !strings.Contains(out.String(), `"nameless"`) {
		t.Errorf("got %s", out.String())
	}
}

func TestPruneWithoutARuntime(t *testing.T) {
	var out bytes.Buffer
	endpoint := "unix://" + filepath.Join(t.TempDir(), "none")
	err := pruneCommand(t.Context(), []string{"--endpoint", endpoint}, &out)
	if err == nil || !strings.Contains(err.Error(), "listing the images") || out.String() != "[]\n" {
		t.Errorf("got %v, %q", err, out.String())
	}
}
