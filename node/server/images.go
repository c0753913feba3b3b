package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// prunePatience is how long the container runtime has for all of it.
const prunePatience = 5 * time.Minute

// pruning says which images are removed beside those that no container uses and nobody has pinned.
type pruning struct {
	// imported has those removed as well that are pinned, as what comes from an archive is.
	imported bool
	// own is what the names of the node's own images begin with. They are pinned; those that are not kept by name are of
	// an earlier release.
	own  string
	keep []string
}

// pruned is an image that was removed.
type pruned struct {
	ID    string   `json:"id"`
	Names []string `json:"names"`
	Bytes uint64   `json:"bytes"` // as it is stored, compressed
}

// pruneCommand removes images by the container runtime's interface, and prints which.
func pruneCommand(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("prune", flag.ContinueOnError)
	endpoint := flags.String("endpoint", "unix:///run/containerd/containerd.sock", "the container runtime's socket")
	var what pruning
	flags.BoolVar(&what.imported, "imported", false, "also what was imported from archives")
	flags.StringVar(&what.own, "own", "", "what the names of the node's own images begin with")
	flags.Func("keep", "the name of an image that stays", func(name string) error {
		what.keep = append(what.keep, name)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, prunePatience)
	defer cancel()
	connection, err := grpc.NewClient(*endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	images, containers := cri.NewImageServiceClient(connection), cri.NewRuntimeServiceClient(connection)
	removed, err := what.prune(ctx, images, containers)
	return errors.Join(err, json.NewEncoder(out).Encode(removed))
}

// prune removes what it can, and tells what that was also where some could not be removed.
func (p pruning) prune(
	ctx context.Context,
	images cri.ImageServiceClient,
	containers cri.RuntimeServiceClient,
) ([]pruned, error) {
	removed := []pruned{}
	all, err := images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return removed, fmt.Errorf("listing the images: %w", err)
	}
	// After the images, so that one that comes in between counts as used if a container takes it.
	used, err := usedImages(ctx, containers)
	if err != nil {
		return removed, fmt.Errorf("listing the containers: %w", err)
	}
	var problems []error
	for _, image := range all.Images {
		if used[image.Id] || !p.removes(image) {
			continue
		}
		if _, err := images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image.Id}}); err != nil {
			problems = append(problems, fmt.Errorf("removing %s %s: %w", image.Id, image.RepoTags, err))
			continue
		}
		names := append(append([]string{}, image.RepoTags...), image.RepoDigests...)
		removed = append(removed, pruned{ID: image.Id, Names: names, Bytes: image.Size})
	}
	return removed, errors.Join(problems...)
}

// usedImages are those that a container runs from or has mounted, be it one that has ended.
func usedImages(ctx context.Context, runtime cri.RuntimeServiceClient) (map[string]bool, error) {
	all, err := runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, container := range all.Containers {
		used[container.ImageId] = true
		used[container.ImageRef] = true
		used[container.GetImage().GetImage()] = true
		status, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container.Id})
		if err != nil {
			return nil, err
		}
		for _, mount := range status.GetStatus().GetMounts() {
			used[mount.GetImage().GetImage()] = true
		}
	}
	return used, nil
}

// removes tells whether an image that nothing uses is to go.
func (p pruning) removes(image *cri.Image) bool {
	names := append(append([]string{}, image.RepoTags...), image.RepoDigests...)
	if slices.ContainsFunc(names, func(name string) bool { return slices.Contains(p.keep, name) }) {
		return false
	}
	isOwn := func(name string) bool { return p.own != "" && strings.HasPrefix(name, p.own) }
	return !image.Pinned || p.imported || len(image.RepoTags) > 0 && !slices.ContainsFunc(image.RepoTags,
		func(name string) bool { return !isOwn(name) })
}
