package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/plugin/assemble"
)

// asProgram in the environment makes the test program the real one.
const asProgram = "CLEAVE_TEST_AS_PROGRAM"

// TestMain lets the test program be the real one, too: as scripts start it, and
// as the processes that it starts of itself.
func TestMain(m *testing.M) {
	if code, hidden := assemble.Hidden(os.Args[1:], os.Stdin, os.Stdout, os.Stderr); hidden {
		os.Exit(code)
	}
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// TestScripts runs testdata/script/*.txtar against this program, with real
// daemons and foreign initiators. commands_test.go has the scripts' commands.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/script",
		Cmds: commands,
		Setup: func(env *testscript.Env) error {
			w := &world{daemons: map[string]*daemon{}}
			env.Values[worldKey{}] = w
			env.Defer(w.end)
			tmp := filepath.Join(env.WorkDir, "tmp")
			env.Vars = append(env.Vars, "TMPDIR="+tmp, "XDG_RUNTIME_DIR="+env.WorkDir)
			return os.Mkdir(tmp, 0o700)
		},
		Condition: func(cond string) (bool, error) {
			// mount: this process may mount file systems; attach: and make block devices.
			_, fuse := os.Stat("/dev/fuse")
			_, loop := os.Stat("/dev/loop-control")
			return unix.Geteuid() == 0 && (cond == "mount" || cond == "attach" && fuse == nil && loop == nil) && mayMount(t), nil
		},
	})
}

func mayMount(t *testing.T) bool {
	dir := t.TempDir()
	err := unix.Mount("none", dir, "tmpfs", 0, "size=1m")
	return err == nil && unix.Unmount(dir, 0) == nil
}
