package nodehost

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"

	"gvisor-k3s/standins/internal/plugintest"
)

const engineAddress = "127.0.0.1:1" // nothing here calls the engine; the runner only gets its address

func start(t *testing.T) (pulumirpc.LanguageRuntimeClient, context.CancelFunc) {
	t.Helper()
	lifetime, cancel := context.WithCancel(t.Context())
	connection := plugintest.Serve(t, func(server *grpc.Server) {
		pulumirpc.RegisterLanguageRuntimeServer(server, New(lifetime, engineAddress))
	})
	return pulumirpc.NewLanguageRuntimeClient(connection), cancel
}

// write makes files, by path relative to dir.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// program is a directory whose SDK has script as its runner.
func program(t *testing.T, script string) string {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Fatalf("these tests need node: %v", err)
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"node_modules/@pulumi/pulumi/cmd/run/index.js": script})
	return dir
}

func info(t *testing.T, dir string, options map[string]any) *pulumirpc.ProgramInfo {
	t.Helper()
	opts, err := structpb.NewStruct(options)
	if err != nil {
		t.Fatal(err)
	}
	return &pulumirpc.ProgramInfo{RootDirectory: dir, ProgramDirectory: dir, EntryPoint: ".", Options: opts}
}

func TestRunnerGetsArgumentsAndConfiguration(t *testing.T) {
	client, _ := start(t)
	dir := program(t, `require("fs").writeFileSync(process.env.SEEN, JSON.stringify({
		argv: process.argv.slice(1), execArgv: process.execArgv, env: process.env}))`)
	seenFile := filepath.Join(t.TempDir(), "seen")
	t.Setenv("SEEN", seenFile)
	response, err := client.Run(t.Context(), &pulumirpc.RunRequest{
		Organization: "org", Project: "proj", Stack: "dev", DryRun: true, Parallel: 16, MonitorAddress: "127.0.0.1:2",
		Args: []string{"own", "--arg"}, Config: map[string]string{"proj:name": `"v"`, "aws:region": "x"},
		ConfigSecretKeys: []string{"proj:name"},
		Info: info(t, dir, map[string]any{
			"typescript": false, "tsconfig": "ts.json", "nodeargs": `--stack-size=900 --title "two words"`,
		}),
	})
	if err != nil || response.GetError() != "" || response.GetBail() {
		t.Fatalf("response %v, error %v", response, err)
	}
	text, err := os.ReadFile(seenFile)
	if err != nil {
		t.Fatal(err)
	}
	var seen struct {
		Argv, ExecArgv []string
		Env            map[string]string
	}
	if err := json.Unmarshal(text, &seen); err != nil {
		t.Fatal(err)
	}
	wantArgv := []string{
		filepath.Join(dir, "node_modules/@pulumi/pulumi/cmd/run/index.js"),
		"--monitor", "127.0.0.1:2", "--engine", engineAddress, "--organization", "org", "--project", "proj",
		"--root-directory", dir, "--stack", "dev", "--pwd", dir, "--dry-run", "--parallel", "16", ".", "own", "--arg",
	}
	if !slices.Equal(seen.Argv, wantArgv) {
		t.Errorf("arguments\n%q, want\n%q", seen.Argv, wantArgv)
	}
	if want := []string{"--stack-size=900", "--title", "two words"}; !slices.Equal(seen.ExecArgv, want) {
		t.Errorf("node's own arguments %q, want %q", seen.ExecArgv, want)
	}
	for name, want := range map[string]string{
		"PULUMI_CONFIG":               `{"aws:config:region":"x","proj:config:name":"\"v\""}`,
		"PULUMI_CONFIG_SECRET_KEYS":   `["proj:name"]`,
		"PULUMI_NODEJS_TYPESCRIPT":    "",
		"PULUMI_NODEJS_TSCONFIG_PATH": "ts.json",
	} {
		if got := seen.Env[name]; got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
}

func TestTypescriptAndEmptyConfigurationByDefault(t *testing.T) {
	client, _ := start(t)
	dir := program(t, `const { PULUMI_NODEJS_TYPESCRIPT, PULUMI_CONFIG, PULUMI_CONFIG_SECRET_KEYS } = process.env
		const empty = PULUMI_CONFIG === "{}" && PULUMI_CONFIG_SECRET_KEYS === "[]"
		process.exit(PULUMI_NODEJS_TYPESCRIPT === "true" && empty ? 0 : 1)`)
	response, err := client.Run(t.Context(), &pulumirpc.RunRequest{Info: info(t, dir, nil)})
	if err != nil || response.GetError() != "" {
		t.Errorf("response %v, error %v", response, err)
	}
}

func TestHowProgramsEnd(t *testing.T) {
	client, _ := start(t)
	for script, want := range map[string]*pulumirpc.RunResponse{
		`process.exit(0)`:                      {},
		`process.exit(32)`:                     {Bail: true},
		`process.exit(7)`:                      {Error: "Program exited with non-zero exit code: 7"},
		`throw "x"`:                            {Error: "Program exited with non-zero exit code: 1"},
		`process.kill(process.pid, "SIGKILL")`: {Error: "the program ended with signal: killed"},
	} {
		response, err := client.Run(t.Context(), &pulumirpc.RunRequest{Info: info(t, program(t, script), nil)})
		if err != nil || response.GetError() != want.GetError() || response.GetBail() != want.GetBail() {
			t.Errorf("%s: response %v, error %v; want %v", script, response, err, want)
		}
	}

	full := info(t, program(t, `const a = []; for (;;) a.push(new Array(10000).fill({}))`),
		map[string]any{"nodeargs": "--max-old-space-size=20"})
	response, err := client.Run(t.Context(), &pulumirpc.RunRequest{Info: full})
	if err != nil || !strings.Contains(response.GetError(), "--max-old-space-size") {
		t.Errorf("a full heap: response %v, error %v", response, err)
	}
}

func TestWhatKeepsAProgramFromStarting(t *testing.T) {
	client, _ := start(t)
	run := func(info *pulumirpc.ProgramInfo) string {
		response, err := client.Run(t.Context(), &pulumirpc.RunRequest{Info: info})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetError()
	}
	problems := run(info(t, t.TempDir(), map[string]any{
		"typescript": "yes", "nodeargs": 1.0, "packagemanager": "cargo", "tsconfig": false,
	}))
	for _, part := range []string{
		"typescript is yes", "nodeargs is 1", "auto, bun, npm, pnpm, yarn", "tsconfig is false",
	} {
		if !strings.Contains(problems, part) {
			t.Errorf("%q is not among the problems:\n%s", part, problems)
		}
	}
	if got := run(info(t, t.TempDir(), nil)); !strings.Contains(got, "@pulumi/pulumi") ||
		!strings.Contains(got, "pulumi install") {
		t.Errorf("without the SDK: %q", got)
	}
	t.Setenv("PATH", t.TempDir())
	if got := run(info(t, t.TempDir(), nil)); !strings.Contains(got, "node is not on PATH") {
		t.Errorf("without node: %q", got)
	}
}

func TestRunnerIsFoundAsNodeFindsIt(t *testing.T) {
	client, _ := start(t)
	root := program(t, `process.exit(0)`)
	write(t, root, map[string]string{"packages/infra/package.json": "{}"})
	hoisted := filepath.Join(root, "packages/infra")
	response, err := client.Run(t.Context(), &pulumirpc.RunRequest{Info: info(t, hoisted, nil)})
	if err != nil || response.GetError() != "" {
		t.Errorf("in a parent's node_modules: %v, %v", response, err)
	}
	t.Setenv("NODE_PATH", filepath.Join(root, "node_modules"))
	response, err = client.Run(t.Context(), &pulumirpc.RunRequest{Info: info(t, t.TempDir(), nil)})
	if err != nil || response.GetError() != "" {
		t.Errorf("through NODE_PATH: %v, %v", response, err)
	}
}

// A stopped program must be gone with its children, even those that ignore SIGINT.
func TestStop(t *testing.T) {
	for name, stop := range map[string]func(client pulumirpc.LanguageRuntimeClient, hangUp, end context.CancelFunc) error{
		"cancel": func(client pulumirpc.LanguageRuntimeClient, _, _ context.CancelFunc) error {
			_, err := client.Cancel(context.Background(), &emptypb.Empty{})
			return err
		},
		"engine gone": func(_ pulumirpc.LanguageRuntimeClient, hangUp, _ context.CancelFunc) error {
			hangUp()
			return nil
		},
		"host ends": func(_ pulumirpc.LanguageRuntimeClient, _, end context.CancelFunc) error {
			end()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, end := start(t)
			dir := program(t, `const child = require("child_process").spawn("sh", ["-c", "trap '' INT TERM; sleep 600"])
				require("fs").writeFileSync(process.argv.at(-1), process.pid + "\n" + child.pid + "\n")
				setInterval(() => {}, 1000)`)
			fifo := filepath.Join(dir, "pids")
			if err := exec.Command("mkfifo", fifo).Run(); err != nil {
				t.Fatal(err)
			}
			request, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			type answer struct {
				response *pulumirpc.RunResponse
				err      error
			}
			answers := make(chan answer, 1)
			go func() {
				response, err := client.Run(request, &pulumirpc.RunRequest{Info: info(t, dir, nil), Args: []string{fifo}})
				answers <- answer{response, err}
			}()
			pids, err := os.ReadFile(fifo) // returns when the program has written and closed it
			if err != nil {
				t.Fatal(err)
			}
			if err := stop(client, hangUp, end); err != nil {
				t.Fatal(err)
			}
			if got := <-answers; got.err == nil && !strings.Contains(got.response.GetError(), "cancelled") {
				t.Errorf("response %v", got.response)
			}
			for _, text := range strings.Fields(string(pids)) {
				pid, err := strconv.Atoi(text)
				if err != nil {
					t.Fatal(err)
				}
				plugintest.AwaitGone(t, pid)
			}
		})
	}
}

func TestRequiredPackages(t *testing.T) {
	client, _ := start(t)
	root := t.TempDir()
	write(t, root, map[string]string{
		"package.json": `{"workspaces": ["packages/*"]}`,
		"node_modules/@pulumi/hoisted/package.json": `{"name": "@pulumi/hoisted", "version": "1.0.0",
			"pulumi": {"resource": true}}`,
		"packages/infra/package.json":                    `{"name": "infra", "pulumi": {"resource": true}}`,
		"packages/infra/node_modules/.package-lock.json": `{}`,
		"packages/infra/node_modules/plain/package.json": `{"name": "plain", "version": "1.0.0"}`,
		"packages/infra/node_modules/no/package.json": `{"name": "no", "version": "1.0.0",
			"pulumi": {"resource": false, "name": "no"}}`,
		"packages/infra/node_modules/broken/package.json": `{"pulumi": `,
		"packages/infra/node_modules/nameless/package.json": `{"name": "nameless", "version": "1.0.0",
			"pulumi": {"resource": true}}`,
		"packages/infra/node_modules/@pulumi/command/package.json": `{"name": "@pulumi/command", "version": "1.2.1",
			"pulumi": {"resource": true, "name": "command"}}`,
		"packages/infra/node_modules/third/package.json": `{"name": "third", "version": "9.9.9",
			"pulumi": {"resource": true, "name": "own", "version": "v2.0.0", "server": "example.test",
				"parameterization": {"name": "p", "version": "3.0.0", "value": "dmFsdWU="}}}`,
		"packages/infra/node_modules/third/node_modules/@pulumi/command/package.json": `{
			"name": "@pulumi/command", "version": "1.1.0", "pulumi": {"resource": true}}`,
		"packages/infra/node_modules/third/examples/node_modules/far/package.json": `{
			"name": "@pulumi/far", "version": "1.0.0", "pulumi": {"resource": true}}`,
	})
	// A linked package, and a circle: infra → linked → infra.
	write(t, root, map[string]string{
		"packages/linked/package.json": `{"name": "@pulumi/linked", "version": "1.0.0", "pulumi": {"resource": true}}`,
	})
	for link, target := range map[string]string{
		"packages/infra/node_modules/linked":        "../../linked",
		"packages/linked/node_modules/@scope/infra": "../../../infra",
	} {
		path := filepath.Join(root, link)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}

	response, err := client.GetRequiredPackages(t.Context(), &pulumirpc.GetRequiredPackagesRequest{
		Info: info(t, filepath.Join(root, "packages/infra"), nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, pkg := range response.GetPackages() {
		got = append(got, strings.Join([]string{pkg.GetKind(), pkg.GetName(), pkg.GetVersion(), pkg.GetServer(),
			pkg.GetParameterization().GetName(), string(pkg.GetParameterization().GetValue())}, " "))
	}
	want := []string{
		"resource command v1.1.0   ", "resource command v1.2.1   ", "resource hoisted v1.0.0   ",
		"resource linked v1.0.0   ", "resource own v2.0.0 example.test p value",
	}
	if !slices.Equal(got, want) {
		t.Errorf("packages\n%q, want\n%q", got, want)
	}
}

func TestAbout(t *testing.T) {
	client, _ := start(t)
	response, err := client.About(t.Context(), &pulumirpc.AboutRequest{
		Info: info(t, t.TempDir(), map[string]any{"packagemanager": "npm"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	nodeVersion, err := exec.Command("node", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	npmVersion, err := exec.Command("npm", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := response.GetVersion(), strings.TrimSpace(string(nodeVersion)); got != want {
		t.Errorf("node %q, want %q", got, want)
	}
	if got, want := response.GetMetadata()["packagemanagerVersion"], strings.TrimSpace(string(npmVersion)); got != want {
		t.Errorf("npm %q, want %q", got, want)
	}
}

func TestInstallAndListDependencies(t *testing.T) {
	client, _ := start(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"package.json":     `{"name": "program", "version": "1.0.0", "dependencies": {"dep": "file:./dep"}}`,
		"dep/package.json": `{"name": "dep", "version": "1.2.3"}`,
	})
	stream, err := client.InstallDependencies(t.Context(), &pulumirpc.InstallDependenciesRequest{
		Info: info(t, dir, map[string]any{"packagemanager": "npm"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	var output strings.Builder
	for {
		message, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, output.String())
		}
		output.Write(message.GetStdout())
		output.Write(message.GetStderr())
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules/dep/package.json")); err != nil {
		t.Errorf("%v\n%s", err, output.String())
	}
	listed, err := client.GetProgramDependencies(t.Context(), &pulumirpc.GetProgramDependenciesRequest{
		Info: info(t, dir, map[string]any{"packagemanager": "npm"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if deps := listed.GetDependencies(); len(deps) != 1 || deps[0].GetName() != "dep" {
		t.Errorf("dependencies %v, want dep", deps)
	}
}

func TestRunPlugin(t *testing.T) {
	client, _ := start(t)
	dir := program(t, "")
	write(t, dir, map[string]string{"node_modules/@pulumi/pulumi/cmd/run-plugin/index.js": `
		console.log(process.argv.slice(2).join(" "), process.cwd(), process.env.GIVEN)
		console.error("error")
		process.exit(process.argv.length > 4 ? 3 : 0)`})
	run := func(args ...string) (stdout, stderr string, err error) {
		stream, err := client.RunPlugin(t.Context(), &pulumirpc.RunPluginRequest{
			Kind: "resource", Pwd: dir, Args: args, Env: []string{"GIVEN=yes"}, Info: info(t, dir, nil),
		})
		if err != nil {
			t.Fatal(err)
		}
		for {
			message, err := stream.Recv()
			if err == io.EOF {
				return stdout, stderr, nil
			}
			if err != nil {
				return stdout, stderr, err
			}
			stdout += string(message.GetStdout())
			stderr += string(message.GetStderr())
		}
	}
	stdout, stderr, err := run("address")
	if want := dir + " address " + dir + " yes\n"; err != nil || stdout != want || stderr != "error\n" {
		t.Errorf("stdout %q, stderr %q, error %v; want stdout %q", stdout, stderr, err, want)
	}
	if _, _, err := run("address", "fail"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v", err)
	}
}

func TestWhatIsNotDoneSaysSo(t *testing.T) {
	client, _ := start(t)
	_, pack := client.Pack(t.Context(), &pulumirpc.PackRequest{})
	_, generate := client.GeneratePackage(t.Context(), &pulumirpc.GeneratePackageRequest{})
	_, link := client.Link(t.Context(), &pulumirpc.LinkRequest{})
	stream, plugin := client.RunPlugin(t.Context(), &pulumirpc.RunPluginRequest{Kind: "analyzer"})
	if plugin == nil {
		_, plugin = stream.Recv()
	}
	for name, err := range map[string]error{
		"Pack": pack, "GeneratePackage": generate, "Link": link, "a policy pack": plugin,
	} {
		if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "stand-in") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
