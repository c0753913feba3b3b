package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// settings are the provider's options that change what a resource operation does. Each comes from the provider's
// argument of that name, else from its environment variable, else it is false.
type settings struct {
	deleteUnreachable           bool // PULUMI_K8S_DELETE_UNREACHABLE
	skipUpdateUnreachable       bool // PULUMI_K8S_SKIP_UPDATE_UNREACHABLE
	enablePatchForce            bool // PULUMI_K8S_ENABLE_PATCH_FORCE
	upsertExistingObjects       bool // PULUMI_K8S_UPSERT_EXISTING_OBJECTS
	enableConfigMapMutable      bool // PULUMI_K8S_ENABLE_CONFIGMAP_MUTABLE
	enableSecretMutable         bool // PULUMI_K8S_ENABLE_SECRET_MUTABLE
	suppressDeprecationWarnings bool // PULUMI_K8S_SUPPRESS_DEPRECATION_WARNINGS
	awaitAll                    bool // PULUMI_K8S_AWAIT_ALL, environment only: wait for kinds without a rule, too
}

func readSettings(variables map[string]string) settings {
	option := func(name, environment string) bool {
		if value, set := variables["kubernetes:config:"+name]; set {
			return value == "true"
		}
		return os.Getenv(environment) == "true"
	}
	return settings{
		deleteUnreachable:           option("deleteUnreachable", "PULUMI_K8S_DELETE_UNREACHABLE"),
		skipUpdateUnreachable:       option("skipUpdateUnreachable", "PULUMI_K8S_SKIP_UPDATE_UNREACHABLE"),
		enablePatchForce:            option("enablePatchForce", "PULUMI_K8S_ENABLE_PATCH_FORCE"),
		upsertExistingObjects:       option("upsertExistingObjects", "PULUMI_K8S_UPSERT_EXISTING_OBJECTS"),
		enableConfigMapMutable:      option("enableConfigMapMutable", "PULUMI_K8S_ENABLE_CONFIGMAP_MUTABLE"),
		enableSecretMutable:         option("enableSecretMutable", "PULUMI_K8S_ENABLE_SECRET_MUTABLE"),
		suppressDeprecationWarnings: option("suppressDeprecationWarnings", "PULUMI_K8S_SUPPRESS_DEPRECATION_WARNINGS"),
		awaitAll:                    os.Getenv("PULUMI_K8S_AWAIT_ALL") == "true",
	}
}

// CheckConfig refuses, all at once, the provider's arguments that are wrong or that this stand-in does not do.
func (p *Provider) CheckConfig(_ context.Context, req *pulumirpc.CheckRequest) (*pulumirpc.CheckResponse, error) {
	arguments, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	response := &pulumirpc.CheckResponse{Inputs: req.GetNews()}
	fail := func(property, reason string) {
		response.Failures = append(response.Failures, &pulumirpc.CheckFailure{Property: property, Reason: reason})
	}
	text := func(name resource.PropertyKey) string {
		value := plain(arguments[name])
		switch {
		case value.IsString():
			return value.StringValue()
		case value.IsBool():
			return strconv.FormatBool(value.BoolValue())
		}
		return ""
	}

	if text("renderYamlToDirectory") != "" {
		fail("renderYamlToDirectory", "this stand-in for Pulumi's provider does not render YAML: leave it out")
	}
	serverSide := orElse(text("enableServerSideApply"), os.Getenv("PULUMI_K8S_ENABLE_SERVER_SIDE_APPLY"))
	if serverSide == "false" {
		fail("enableServerSideApply",
			"this stand-in for Pulumi's provider knows server-side apply only: leave it out or set true")
	}
	if text("strictMode") == "true" {
		for _, name := range []resource.PropertyKey{"kubeconfig", "context"} {
			if text(name) == "" && !arguments[name].ContainsUnknowns() {
				fail(string(name), fmt.Sprintf("strictMode asks for an explicit %s: set it", name))
			}
		}
	}
	if kubeconfig := text("kubeconfig"); kubeconfig != "" {
		// A path may be written later in the same update, so only content can be judged here.
		if _, err := loadKubeconfig(kubeconfig); err != nil && looksLikeContent(kubeconfig) {
			fail("kubeconfig", err.Error())
		}
	}
	if _, err := clientSettings(text("kubeClientSettings")); err != nil {
		fail("kubeClientSettings", err.Error())
	}
	return response, nil
}

// DiffConfig replaces the provider, and with it every resource, only when its arguments lead to another cluster. New
// credentials, another address of the same cluster or an argument that is not known yet are updates in place.
func (p *Provider) DiffConfig(_ context.Context, req *pulumirpc.DiffRequest) (*pulumirpc.DiffResponse, error) {
	before, err := unmarshal(req.GetOlds())
	if err != nil {
		return nil, err
	}
	after, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	diff := before.Diff(after)
	if diff == nil {
		return &pulumirpc.DiffResponse{Changes: pulumirpc.DiffResponse_DIFF_NONE}, nil
	}
	response := &pulumirpc.DiffResponse{Changes: pulumirpc.DiffResponse_DIFF_SOME}
	for _, key := range diff.ChangedKeys() {
		response.Diffs = append(response.Diffs, string(key))
	}
	slices.Sort(response.Diffs)
	switch identifier := resource.PropertyKey("clusterIdentifier"); {
	case diff.Updated(identifier) && !after[identifier].ContainsUnknowns():
		response.Replaces = append(response.Replaces, string(identifier))
	case diff.Same(identifier) && after.HasValue(identifier):
		// The user says that it is the same cluster.
	case anotherCluster(before, after):
		for _, key := range []string{"kubeconfig", "context", "cluster"} {
			if slices.Contains(response.Diffs, key) {
				response.Replaces = append(response.Replaces, key)
			}
		}
	}
	return response, nil
}

// anotherCluster reports whether the arguments certainly lead to different clusters. A cluster's certificate authority
// is the nearest thing to an identity that a kubeconfig has: an address changes with a port or a tunnel, a credential
// with every rotation. Where one side names no authority, the addresses decide.
func anotherCluster(before, after resource.PropertyMap) bool {
	old, new := activeCluster(before), activeCluster(after)
	if old == nil || new == nil {
		return false
	}
	oldAuthority, newAuthority := authority(old), authority(new)
	if len(oldAuthority) > 0 && len(newAuthority) > 0 {
		return !bytes.Equal(oldAuthority, newAuthority)
	}
	return old.Server != new.Server
}

func authority(cluster *clientcmdapi.Cluster) []byte {
	if len(cluster.CertificateAuthorityData) > 0 || cluster.CertificateAuthority == "" {
		return bytes.TrimSpace(cluster.CertificateAuthorityData)
	}
	content, err := os.ReadFile(cluster.CertificateAuthority)
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(content)
}

// activeCluster returns the cluster that the provider's arguments select, or nil where they do not tell.
func activeCluster(arguments resource.PropertyMap) *clientcmdapi.Cluster {
	text := func(name resource.PropertyKey) (value string, known bool) {
		switch property := plain(arguments[name]); {
		case property.IsString():
			return property.StringValue(), true
		case property.IsObject():
			content, err := json.Marshal(property.ObjectValue().Mappable())
			return string(content), err == nil
		default:
			return "", property.IsNull()
		}
	}
	source, sourceKnown := text("kubeconfig")
	context, contextKnown := text("context")
	name, nameKnown := text("cluster")
	if source == "" || !sourceKnown || !contextKnown || !nameKnown {
		return nil
	}
	kubeconfig, err := loadKubeconfig(source)
	if err != nil {
		return nil
	}
	if name == "" {
		if context == "" {
			context = kubeconfig.CurrentContext
		}
		selected := kubeconfig.Contexts[context]
		if selected == nil {
			return nil
		}
		name = selected.Cluster
	}
	return kubeconfig.Clusters[name]
}

func plain(value resource.PropertyValue) resource.PropertyValue {
	for value.IsSecret() {
		value = value.SecretValue().Element
	}
	return value
}

// Configure takes the arguments over. It does not talk to the cluster: that happens with the first resource that needs
// it, so that a program without one works while the cluster is down.
func (p *Provider) Configure(_ context.Context, req *pulumirpc.ConfigureRequest) (*pulumirpc.ConfigureResponse, error) {
	//lint:ignore SA1019 The engine still sends them, as plain strings, which Args are not.
	variables := req.GetVariables()
	p.settings = readSettings(variables)
	p.cluster = newCluster(variables, p)
	return &pulumirpc.ConfigureResponse{
		AcceptSecrets:                   true,
		SupportsPreview:                 true,
		SupportsAutonamingConfiguration: true,
	}, nil
}

// clientConfig returns how to reach the API server and the namespace of objects that name none.
func clientConfig(variables map[string]string) (*rest.Config, string, error) {
	option := func(name string) string { return variables["kubernetes:config:"+name] }
	overrides := &clientcmd.ConfigOverrides{CurrentContext: option("context")}
	overrides.Context.Cluster = option("cluster")
	overrides.Context.Namespace = option("namespace")

	var source clientcmd.ClientConfig
	if text := option("kubeconfig"); text != "" {
		kubeconfig, err := loadKubeconfig(text)
		if err != nil {
			return nil, "", err
		}
		source = clientcmd.NewDefaultClientConfig(*kubeconfig, overrides)
	} else {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		source = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	}
	namespace, _, err := source.Namespace()
	if err != nil {
		return nil, "", err
	}
	config, err := source.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("%w: give the provider a kubeconfig (its content or a path), or set KUBECONFIG", err)
	}
	limits, err := clientSettings(option("kubeClientSettings"))
	if err != nil {
		return nil, "", err
	}
	config.Burst, config.QPS, config.Timeout = limits.Burst, limits.QPS, time.Duration(limits.Timeout)*time.Second
	config.UserAgent = "pulumi-kubernetes/" + Version
	return config, namespace, nil
}

type kubeClientSettings struct {
	Burst   int     `json:"burst"`   // requests at once, PULUMI_K8S_CLIENT_BURST
	QPS     float32 `json:"qps"`     // requests per second, PULUMI_K8S_CLIENT_QPS
	Timeout int     `json:"timeout"` // seconds for one request, 0 for no limit, PULUMI_K8S_CLIENT_TIMEOUT
}

func clientSettings(argument string) (kubeClientSettings, error) {
	values := kubeClientSettings{Burst: 120, QPS: 50}
	var problems []error
	for name, set := range map[string]func(float64){
		"PULUMI_K8S_CLIENT_BURST":   func(value float64) { values.Burst = int(value) },
		"PULUMI_K8S_CLIENT_QPS":     func(value float64) { values.QPS = float32(value) },
		"PULUMI_K8S_CLIENT_TIMEOUT": func(value float64) { values.Timeout = int(value) },
	} {
		text := os.Getenv(name)
		if text == "" {
			continue
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s=%q is not a number", name, text))
			continue
		}
		set(value)
	}
	if argument != "" {
		if err := json.Unmarshal([]byte(argument), &values); err != nil {
			problems = append(problems, fmt.Errorf("kubeClientSettings: %w", err))
		}
	}
	return values, errors.Join(problems...)
}

// loadKubeconfig reads a kubeconfig from its content or from a file; "~/" stands for the home directory. No error
// repeats the content: there may be credentials in it.
func loadKubeconfig(pathOrContent string) (*clientcmdapi.Config, error) {
	if looksLikeContent(pathOrContent) {
		kubeconfig, err := clientcmd.Load([]byte(pathOrContent))
		if err != nil {
			return nil, errors.New("the kubeconfig is neither a path nor YAML or JSON of kind Config")
		}
		return kubeconfig, nil
	}
	path := pathOrContent
	if rest, found := strings.CutPrefix(path, "~/"); found {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
		}
		path = filepath.Join(home, rest)
	}
	kubeconfig, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return kubeconfig, clientcmd.ResolveLocalPaths(kubeconfig)
}

func looksLikeContent(text string) bool {
	return strings.ContainsAny(text, "\n{") || strings.Contains(text, ": ")
}
