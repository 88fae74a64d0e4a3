package cli

import (
	"context"
	"flag"
	"log/slog"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/plugin/api"
)

// -update writes what commands print into the scripts, for review by git diff.
var update = flag.Bool("update", false, "rewrite the expected output in testdata/script")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parts are a command line over a control plane at a real socket and a data
// plane in memory.
func parts(socket string, storage Storage) Parts {
	return Parts{
		Release:       "v0.0.0-test",
		ControlSocket: socket,
		ArraySocket:   "/run/cleave/array.sock",
		Service:       func(socket string) Control { return api.NewClient(socket) },
		Storage:       func(string) Storage { return storage },
		RunArray:      func(context.Context, ArrayOptions, *slog.Logger) error { return nil },
		Arrays: func(_ context.Context, config, _ string) ([]Array, error) {
			if config != "two.yaml" {
				return nil, nil
			}
			return []Array{
				{Name: "main", Type: "embedded", State: ArrayOK, Volumes: 3},
				{Name: "local", Type: "lvm", State: ArrayProblems, Detail: "thin pool vg0/pool is 97% full"},
			}, nil
		},
		Examine:        examineFake,
		Rescan:         func(context.Context, RescanOptions) (Rescan, error) { return Rescan{}, nil },
		RunServe:       func(context.Context, ServeOptions, *slog.Logger) error { return nil },
		ServeLUNs:      func(context.Context, LUNOptions, func([]ServedLUN) error, *slog.Logger) error { return nil },
		InspectDisks:   func(context.Context, LUNSources) (*recovery.Report, Disks, error) { return nil, Disks{}, nil },
		OpenDisks:      func(context.Context, LUNSources, ...string) (Disks, error) { return Disks{}, nil },
		RecoverInPlace: func(context.Context, InPlaceOptions, func(*InPlacePlan) error, recovery.Progress) error { return nil },
	}
}

// TestScripts runs testdata/script/*.txtar against the whole command line, with
// a fixed control plane (fake_test.go) behind a real socket.
//
// Besides testscript's own commands they have:
//
//	cleave ARGS…   runs the command line in this process
//	status N       the exit status of the last cleave
//	released N     how many sets were released
//	secret IQN F   which file with a CHAP secret the initiator was added with
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	type world struct {
		service *fakeService
		storage *fakeStorage
		socket  string
	}
	type key struct{}
	get := func(ts *testscript.TestScript) *world { return ts.Value(key{}).(*world) }
	testscript.Run(t, testscript.Params{
		Files:         files,
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			w := &world{service: &fakeService{}, storage: &fakeStorage{}, socket: filepath.Join(t.TempDir(), "s")}
			env.Values[key{}] = w
			l, err := api.Listen(w.socket)
			if err != nil {
				return err
			}
			log := slog.New(slog.DiscardHandler)
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := api.Serve(ctx, l, api.Handler(w.service, "v0.0.0-test", log), log); err != nil {
					t.Error(err)
				}
			})
			env.Defer(func() { cancel(); wg.Wait() })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"cleave": func(ts *testscript.TestScript, neg bool, args []string) {
				w := get(ts)
				s := Streams{In: strings.NewReader(""), Out: ts.Stdout(), Err: ts.Stderr(), Getenv: ts.Getenv}
				for i, a := range args { // files of the script
					if strings.HasSuffix(a, ".secret") {
						args[i] = ts.MkAbs(a)
					}
				}
				code := run(context.Background(), args, s, parts(w.socket, w.storage))
				ts.Setenv("status", strconv.Itoa(code))
				if (code != ExitOK) != neg {
					ts.Fatalf("exit status %d", code)
				}
			},
			"status": func(ts *testscript.TestScript, _ bool, args []string) {
				if got := ts.Getenv("status"); got != args[0] {
					ts.Fatalf("exit status %s, want %s", got, args[0])
				}
			},
			"released": func(ts *testscript.TestScript, _ bool, args []string) {
				w := get(ts)
				w.service.mu.Lock()
				defer w.service.mu.Unlock()
				if got := strconv.Itoa(len(w.service.released)); got != args[0] {
					ts.Fatalf("%s sets were released, want %s", got, args[0])
				}
			},
			"secret": func(ts *testscript.TestScript, _ bool, args []string) {
				if got := get(ts).storage.secrets[args[0]]; got != args[1] {
					ts.Fatalf("secret file %q, want %q", got, args[1])
				}
			},
		},
	})
}

// TestEveryCommandHasExamplesThatParse walks the tree: each command says what it
// is for, and the command lines of its examples are ones that it takes.
func TestEveryCommandHasExamplesThatParse(t *testing.T) {
	p := parts("/nowhere", &fakeStorage{})
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, child := range c.Commands() {
			walk(child)
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help %q: want a phrase without a full stop", c.CommandPath(), c.Short)
		}
		if c.Example == "" && !c.HasSubCommands() {
			t.Errorf("%s: help has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			for _, args := range commandLines(line) {
				_, root := newApp(Streams{}, p)
				sub, rest, err := root.Find(args)
				if err == nil {
					err = sub.ParseFlags(rest)
				}
				if err == nil {
					err = sub.ValidateArgs(sub.Flags().Args())
				}
				if err == nil {
					err = sub.ValidateRequiredFlags()
				}
				if err != nil {
					t.Errorf("%s: example %q: %v", c.CommandPath(), strings.TrimSpace(line), err)
				} else if !sub.Runnable() {
					t.Errorf("%s: example %q runs nothing", c.CommandPath(), strings.TrimSpace(line))
				}
			}
		}
	}
	walk(New(Streams{}, p))
}

// substitution is $(…), as far as examples nest it.
var substitution = regexp.MustCompile(`\$\(([^)]*)\)`)

// commandLines finds the calls of cleave in a line of shell. It knows as much of
// the shell as examples need.
func commandLines(line string) [][]string {
	var out [][]string
	for _, m := range substitution.FindAllStringSubmatch(line, -1) {
		out = append(out, commandLines(m[1])...)
	}
	words := strings.Fields(substitution.ReplaceAllString(line, "set-0123456789abcdef"))
	for i := 0; i < len(words); i++ {
		if words[i] != "cleave" {
			continue
		}
		var args []string
		for i++; i < len(words) && words[i] != "cleave" && !strings.ContainsAny(words[i][:1], "|&>;"); i++ {
			args = append(args, strings.Trim(words[i], `"'`))
		}
		i--
		out = append(out, args)
	}
	return out
}
