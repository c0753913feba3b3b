package command

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/provider"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"

	"gvisor-k3s/standins/internal/plugintest"
)

const urn = "urn:pulumi:stack::project::command:local:Command::name"

var unknown = resource.MakeComputed(resource.NewStringProperty(""))

func start(t *testing.T) (pulumirpc.ResourceProviderClient, *plugintest.Engine) {
	t.Helper()
	engine := plugintest.StartEngine(t)
	host, err := provider.NewHostClient(engine.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	connection := plugintest.Serve(t, func(server *grpc.Server) {
		pulumirpc.RegisterResourceProviderServer(server, NewProvider(host))
	})
	return pulumirpc.NewResourceProviderClient(connection), engine
}

// properties are inputs or a state as the engine sends them. Values may be resource.PropertyValues.
func properties(t *testing.T, values map[string]any) *structpb.Struct {
	t.Helper()
	s, err := marshal(resource.NewPropertyMapFromMap(values))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func state(t *testing.T, s *structpb.Struct) resource.PropertyMap {
	t.Helper()
	m, err := unmarshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func create(t *testing.T, client pulumirpc.ResourceProviderClient, values map[string]any) resource.PropertyMap {
	t.Helper()
	response, err := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: urn, Properties: properties(t, values)})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(response.GetId(), "name") {
		t.Errorf("id %q does not begin with the resource's name", response.GetId())
	}
	return state(t, response.GetProperties())
}

func expect(t *testing.T, state resource.PropertyMap, key string, want any) {
	t.Helper()
	value, given := state[resource.PropertyKey(key)]
	if !given {
		t.Errorf("%s is missing, want %v", key, want)
	} else if expected := resource.NewPropertyValue(want); !value.DeepEquals(expected) {
		t.Errorf("%s = %v, want %v", key, value, expected)
	}
}

func TestCreateKeepsInputsAndTrimsOneNewline(t *testing.T) {
	client, _ := start(t)
	got := create(t, client, map[string]any{"create": "echo out; printf 'err\\n\\n' >&2", "triggers": []any{1.0, "a"}})
	expect(t, got, "stdout", "out")
	expect(t, got, "stderr", "err\n")
	expect(t, got, "triggers", []any{1.0, "a"})
}

func TestProcessInputs(t *testing.T) {
	client, _ := start(t)
	dir := t.TempDir()
	t.Setenv("FROM_ENGINE", "inherited")
	got := create(t, client, map[string]any{
		"create":      `cat; pwd; echo "$FROM_ENGINE $OWN ${UNSET-default}"; echo "$-" | grep -q e && echo e`,
		"stdin":       "given\n",
		"dir":         dir,
		"environment": map[string]any{"OWN": "own"},
		"interpreter": []any{"/bin/sh", "-e", "-c"},
	})
	expect(t, got, "stdout", "given\n"+dir+"\ninherited own default\ne")
}

func TestLogging(t *testing.T) {
	for logging, want := range map[string]string{
		"": "out err", "stdoutAndStderr": "out err", "stdout": "out", "stderr": "err", "none": "",
	} {
		t.Run(logging, func(t *testing.T) {
			client, engine := start(t)
			inputs := map[string]any{"create": "echo out; sync; echo err >&2"}
			if logging != "" {
				inputs["logging"] = logging
			}
			got := create(t, client, inputs)
			expect(t, got, "stdout", "out")
			expect(t, got, "stderr", "err")
			for _, stream := range []string{"out", "err"} {
				shown := strings.Contains(strings.Join(engine.Messages(), " "), stream)
				if shown != strings.Contains(want, stream) {
					t.Errorf("%s shown: %v; messages %q", stream, shown, engine.Messages())
				}
			}
		})
	}
}

func TestOutputIsLoggedWhileTheCommandRuns(t *testing.T) {
	client, engine := start(t)
	fifo := filepath.Join(t.TempDir(), "continue")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := client.Create(t.Context(), &pulumirpc.CreateRequest{
			Urn: urn, Properties: properties(t, map[string]any{"create": "echo waiting; cat " + fifo}),
		})
		done <- err
	}()
	engine.Await(deadline(t), t, "waiting")
	if err := os.WriteFile(fifo, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestLongLineWithoutEndDoesNotBlock(t *testing.T) {
	client, engine := start(t)
	got := create(t, client, map[string]any{"create": "head -c 300000 /dev/zero | tr '\\0' x"})
	if length := len(got["stdout"].StringValue()); length != 300000 {
		t.Errorf("stdout has %d bytes, want 300000", length)
	}
	if logged := len(strings.Join(engine.Messages(), "")); logged != 300000 {
		t.Errorf("%d bytes were logged, want 300000", logged)
	}
}

func TestUpdateRunsUpdateOrElseCreate(t *testing.T) {
	client, _ := start(t)
	old := map[string]any{"create": "old", "stdout": "last out", "stderr": "last err"}
	previous := `echo "$PULUMI_COMMAND_STDOUT, $PULUMI_COMMAND_STDERR"`
	for name, test := range map[string]struct {
		news map[string]any
		want string
	}{
		"update":  {map[string]any{"create": "exit 9", "update": previous}, "last out, last err"},
		"create":  {map[string]any{"create": previous}, "last out, last err"},
		"neither": {map[string]any{"delete": "exit 9"}, "last out"},
		"without previous outputs": {
			map[string]any{"create": previous, "addPreviousOutputInEnv": false}, ", ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			response, err := client.Update(t.Context(), &pulumirpc.UpdateRequest{
				Id: "id", Urn: urn, Olds: properties(t, old), News: properties(t, test.news),
			})
			if err != nil {
				t.Fatal(err)
			}
			expect(t, state(t, response.GetProperties()), "stdout", test.want)
		})
	}
}

func TestDelete(t *testing.T) {
	client, _ := start(t)
	file := filepath.Join(t.TempDir(), "deleted")
	for name, olds := range map[string]map[string]any{
		"none": {"stdout": "", "stderr": ""},
		"runs": {
			"stdout": resource.MakeSecret(resource.NewStringProperty("last")), "stderr": "",
			"delete": "echo $PULUMI_COMMAND_STDOUT > " + file,
		},
	} {
		if _, err := client.Delete(t.Context(), &pulumirpc.DeleteRequest{
			Id: "id", Urn: urn, Properties: properties(t, olds),
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "last\n" {
		t.Errorf("the delete command wrote %q (%v), want the last stdout", text, err)
	}
}

func TestFailuresCarryTheOutput(t *testing.T) {
	client, _ := start(t)
	failing := map[string]any{"create": "echo out; echo err >&2; exit 3"}
	_, createErr := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: urn, Properties: properties(t, failing)})
	_, updateErr := client.Update(t.Context(), &pulumirpc.UpdateRequest{Urn: urn, News: properties(t, failing)})
	_, deleteErr := client.Delete(t.Context(), &pulumirpc.DeleteRequest{
		Urn: urn, Properties: properties(t, map[string]any{"delete": failing["create"]}),
	})
	for name, err := range map[string]error{"create": createErr, "update": updateErr, "delete": deleteErr} {
		for _, part := range []string{"exit status 3", `"echo out; echo err >&2; exit 3"`, "out\n", "err\n"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: error %v lacks %q", name, err, part)
			}
		}
	}
	_, err := client.Create(t.Context(), &pulumirpc.CreateRequest{
		Urn: urn, Properties: properties(t, map[string]any{"create": "true", "dir": "/does/not/exist"}),
	})
	if err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("error %v does not name the missing directory", err)
	}
}

func TestSecretInputsStaySecret(t *testing.T) {
	client, _ := start(t)
	secret := resource.MakeSecret(resource.NewStringProperty("s3cret"))
	got := create(t, client, map[string]any{"create": "echo $TOKEN", "environment": map[string]any{"TOKEN": secret}})
	if token := got["environment"].ObjectValue()["TOKEN"]; !token.IsSecret() {
		t.Errorf("the secret variable is %v in the state", token)
	}
	// As in the real provider: additionalSecretOutputs is what makes the outputs secret.
	expect(t, got, "stdout", "s3cret")
}

func TestPreviewIsUnknownOnlyWhereACommandWillRun(t *testing.T) {
	client, _ := start(t)
	marker := filepath.Join(t.TempDir(), "ran")
	run := "touch " + marker
	old := map[string]any{"create": "old", "stdout": "out", "stderr": "err"}
	isUnknown := func(m resource.PropertyMap, key resource.PropertyKey) bool { return m[key].IsComputed() }

	created, err := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: urn, Preview: true, Properties: properties(t,
		map[string]any{"create": run, "assetPaths": []any{"*"}})})
	if err != nil {
		t.Fatal(err)
	}
	got := state(t, created.GetProperties())
	for _, key := range []resource.PropertyKey{"stdout", "stderr", "assets"} {
		if !isUnknown(got, key) {
			t.Errorf("create: %s is %v, want unknown", key, got[key])
		}
	}
	for name, test := range map[string]struct {
		news map[string]any
		want bool
	}{
		"update runs":        {map[string]any{"create": "old", "update": run}, true},
		"environment added":  {map[string]any{"create": run, "environment": map[string]any{"A": "b"}}, true},
		"unknown command":    {map[string]any{"create": unknown}, true},
		"unknown secret":     {map[string]any{"create": run, "stdin": resource.MakeSecret(unknown)}, true},
		"nothing to run":     {map[string]any{"delete": run}, false},
		"nothing to run yet": {map[string]any{"delete": unknown}, false},
	} {
		updated, err := client.Update(t.Context(), &pulumirpc.UpdateRequest{
			Urn: urn, Preview: true, Olds: properties(t, old), News: properties(t, test.news),
		})
		if err != nil {
			t.Fatal(err)
		}
		got := state(t, updated.GetProperties())
		if isUnknown(got, "stdout") != test.want || isUnknown(got, "stderr") != test.want {
			t.Errorf("%s: stdout %v, stderr %v; want unknown: %v", name, got["stdout"], got["stderr"], test.want)
		}
	}
	if _, err := os.Stat(marker); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a preview ran the command: %v", err)
	}
}

func TestDiff(t *testing.T) {
	client, _ := start(t)
	old := map[string]any{"create": "c", "triggers": []any{"a"}, "environment": map[string]any{"A": "1"}}
	with := func(changes map[string]any) map[string]any {
		news := map[string]any{}
		for key, value := range old {
			news[key] = value
		}
		for key, value := range changes {
			news[key] = value
			if value == nil {
				delete(news, key)
			}
		}
		return news
	}
	type kinds = map[string]pulumirpc.PropertyDiff_Kind
	for name, test := range map[string]struct {
		news     map[string]any
		detailed kinds
	}{
		"same":             {with(nil), nil},
		"engine's own":     {with(map[string]any{"version": "1", "__internal": "x"}), nil},
		"create":           {with(map[string]any{"create": "d"}), kinds{"create": pulumirpc.PropertyDiff_UPDATE}},
		"update added":     {with(map[string]any{"update": "u"}), kinds{"update": pulumirpc.PropertyDiff_ADD}},
		"create removed":   {with(map[string]any{"create": nil}), kinds{"create": pulumirpc.PropertyDiff_DELETE}},
		"triggers removed": {with(map[string]any{"triggers": nil}), kinds{"triggers": pulumirpc.PropertyDiff_DELETE_REPLACE}},
		"variable": {
			with(map[string]any{"environment": map[string]any{"A": "2"}}),
			kinds{"environment.A": pulumirpc.PropertyDiff_UPDATE},
		},
		"trigger": {
			with(map[string]any{"triggers": []any{"b"}}), kinds{"triggers[0]": pulumirpc.PropertyDiff_UPDATE},
		},
	} {
		t.Run(name, func(t *testing.T) {
			response, err := client.Diff(t.Context(), &pulumirpc.DiffRequest{
				Id: "id", Urn: urn, OldInputs: properties(t, old), News: properties(t, test.news),
			})
			if err != nil {
				t.Fatal(err)
			}
			if changed := response.GetChanges() == pulumirpc.DiffResponse_DIFF_SOME; changed != (test.detailed != nil) {
				t.Errorf("changes: %v, want %v", response.GetChanges(), test.detailed)
			}
			if !response.GetHasDetailedDiff() {
				t.Error("no detailed diff: the engine cannot apply replaceOnChanges")
			}
			if len(response.GetDetailedDiff()) != len(test.detailed) {
				t.Errorf("detailed diff %v, want %v", response.GetDetailedDiff(), test.detailed)
			}
			for path, kind := range test.detailed {
				if got := response.GetDetailedDiff()[path]; got == nil || got.GetKind() != kind {
					t.Errorf("%s: %v, want %v", path, got, kind)
				}
			}
		})
	}
}

func TestCheckReportsEveryProblem(t *testing.T) {
	client, _ := start(t)
	response, err := client.Check(t.Context(), &pulumirpc.CheckRequest{Urn: urn, News: properties(t, map[string]any{
		"create": 1.0, "typo": "x", "environment": map[string]any{"A": true, "B": unknown}, "logging": "loud",
		"dir": unknown,
	})})
	if err != nil {
		t.Fatal(err)
	}
	var properties []string
	for _, failure := range response.GetFailures() {
		properties = append(properties, failure.GetProperty())
	}
	if got, want := strings.Join(properties, " "), "create environment[A] value logging typo"; got != want {
		t.Errorf("failures for %q, want %q", got, want)
	}
}

func TestCheckKeepsSecretsAndUnknowns(t *testing.T) {
	client, _ := start(t)
	inputs := properties(t, map[string]any{
		"create": resource.MakeSecret(resource.NewStringProperty("x")), "triggers": []any{unknown},
	})
	response, err := client.Check(t.Context(), &pulumirpc.CheckRequest{Urn: urn, News: inputs})
	if err != nil || len(response.GetFailures()) > 0 {
		t.Fatal(response, err)
	}
	if got, want := state(t, response.GetInputs()), state(t, inputs); !got.DeepEquals(want) {
		t.Errorf("checked inputs %v, want %v", got, want)
	}
}

func TestGlobs(t *testing.T) {
	client, _ := start(t)
	dir := t.TempDir()
	for _, file := range []string{"a/x.txt", "a/secret.txt", "a/b/y.js"} {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := create(t, client, map[string]any{
		"create": "true", "dir": dir, "assetPaths": []any{"**", "!**secret*"}, "archivePaths": []any{"a/*.txt"},
	})
	assets := got["assets"].ObjectValue()
	if len(assets) != 2 || assets["a/x.txt"].AssetValue().Path != filepath.Join(dir, "a/x.txt") ||
		!assets["a/b/y.js"].IsAsset() {
		t.Errorf("assets %v", assets)
	}
	members, _ := got["archive"].ArchiveValue().GetAssets()
	if len(members) != 2 || members["a/x.txt"] == nil || members["a/secret.txt"] == nil {
		t.Errorf("archive %v", members)
	}

	_, err := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: urn, Properties: properties(t,
		map[string]any{"create": "true", "dir": dir, "assetPaths": []any{"[a"}})})
	if err == nil || !strings.Contains(err.Error(), `assetPaths: glob "[a"`) {
		t.Errorf("error %v does not name the bad glob", err)
	}
}

func TestRunFunction(t *testing.T) {
	client, _ := start(t)
	response, err := client.Invoke(t.Context(), &pulumirpc.InvokeRequest{
		Tok: runFunction, Args: properties(t, map[string]any{"command": "echo $A", "environment": map[string]any{"A": "b"}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	got := state(t, response.GetReturn())
	expect(t, got, "stdout", "b")
	expect(t, got, "command", "echo $A")

	response, err = client.Invoke(t.Context(), &pulumirpc.InvokeRequest{
		Tok: runFunction, Args: properties(t, map[string]any{}),
	})
	if err != nil || len(response.GetFailures()) != 1 || response.GetFailures()[0].GetProperty() != "command" {
		t.Errorf("without a command: %v, %v", response, err)
	}
}

func TestRemoteIsRefusedByName(t *testing.T) {
	client, _ := start(t)
	instead := "pulumi plugin install resource command " + Version
	for _, token := range []string{"command:remote:Command", "command:remote:CopyFile", "command:remote:CopyToRemote"} {
		urn := "urn:pulumi:stack::project::" + token + "::name"
		_, checkErr := client.Check(t.Context(), &pulumirpc.CheckRequest{Urn: urn})
		_, createErr := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: urn})
		_, deleteErr := client.Delete(t.Context(), &pulumirpc.DeleteRequest{Urn: urn})
		_, invokeErr := client.Invoke(t.Context(), &pulumirpc.InvokeRequest{Tok: token})
		for name, err := range map[string]error{
			"check": checkErr, "create": createErr, "delete": deleteErr, "invoke": invokeErr,
		} {
			if status.Code(err) != codes.Unimplemented {
				t.Errorf("%s: %v", name, err)
			}
			for _, part := range []string{token, "on this machine only", instead} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: error %v lacks %q", name, err, part)
				}
			}
		}
	}
}

// The cancelled command must be gone with its children, even those that ignore SIGTERM.
func TestStop(t *testing.T) {
	for name, stop := range map[string]struct {
		timeout float64
		cancel  func(context.CancelFunc, pulumirpc.ResourceProviderClient) error
		want    string
	}{
		"cancel": {0, func(_ context.CancelFunc, client pulumirpc.ResourceProviderClient) error {
			_, err := client.Cancel(context.Background(), &emptypb.Empty{})
			return err
		}, "cancelled"},
		"engine gone": {0, func(hangUp context.CancelFunc, _ pulumirpc.ResourceProviderClient) error {
			hangUp()
			return nil
		}, "canceled"}, // the client's own error
		"timeout": {1, func(context.CancelFunc, pulumirpc.ResourceProviderClient) error { return nil }, "customTimeouts"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, engine := start(t)
			pidFile := filepath.Join(t.TempDir(), "pid")
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			done := make(chan error, 1)
			go func() {
				_, err := client.Create(ctx, &pulumirpc.CreateRequest{
					Urn: urn, Timeout: stop.timeout,
					Properties: properties(t, map[string]any{
						"create": "(trap '' TERM; sleep 600) & echo $! > " + pidFile + "; echo started; wait",
					}),
				})
				done <- err
			}()
			engine.Await(deadline(t), t, "started")
			text, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			if err := stop.cancel(hangUp, client); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err == nil || !strings.Contains(err.Error(), stop.want) {
				t.Errorf("error %v, want %q in it", err, stop.want)
			}
			plugintest.AwaitGone(t, pid)
		})
	}
}

func TestBackgroundProcessOfASuccessfulCommandLives(t *testing.T) {
	client, _ := start(t)
	got := create(t, client, map[string]any{"create": "sleep 600 >/dev/null 2>&1 & echo $!"})
	pid, err := strconv.Atoi(got["stdout"].StringValue())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the background process is gone: %v", err)
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
