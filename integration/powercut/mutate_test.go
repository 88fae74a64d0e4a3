//go:build lab

package powercut

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// syncs are the functions of the embedded array that make something stable, with
// what a call of one is replaced by: the same arguments, and no effect.
var syncs = map[string]string{
	"Sync":         "func(...any) error { return nil }",
	"SyncDir":      "func(...any) error { return nil }",
	"flush":        "func(...any) error { return nil }",
	"flushLocked":  "func(...any) error { return nil }",
	"sync":         "func(...any) error { return nil }",
	"syncEpoch":    "func(...any) error { return nil }",
	"settle":       "func(...any) error { return nil }",
	"settleMirror": "func(...any) error { return nil }",
	"settleDir":    "func(...any) error { return nil }",
	"syncAll":      "func(ps []*plex) []error { return make([]error, len(ps)) }",
}

// needless are calls that may be missing without harm to anything stable, by
// file, function and callee, with the reason why they are there.
var needless = map[string]string{
	"cut.go makeReady flush": "only so that little is left to sync after the instant",
	"cut.go flush Sync":      "only so that little is left to sync after the instant, or to write out in the hold",
}

// cuts is how many cut points have to pass for a missing fsync to be called
// unnoticed.
const cuts = "20000"

// site is one call.
type site struct {
	file       string // below arrays/embedded
	line       int
	fn, callee string
	start, end int // of the call in the file
	with       string
}

func (s site) String() string { return fmt.Sprintf("%s:%d %s in %s", s.file, s.line, s.callee, s.fn) }

const array = "../../arrays/embedded"

// sites finds the calls, in the array and in what it does with its files.
func sites(t *testing.T) (out []site) {
	for _, dir := range []string{"", "disk"} {
		names, err := filepath.Glob(filepath.Join(array, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") || filepath.Base(name) == "os.go" { // the kernel's own
				continue
			}
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, name, src, 0)
			if err != nil {
				t.Fatal(err)
			}
			rel, _ := filepath.Rel(array, name)
			out = append(out, calls(set, f, src, rel)...)
		}
	}
	return out
}

func calls(set *token.FileSet, f *ast.File, src []byte, file string) (out []site) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			var name string
			var args []ast.Expr
			switch x := call.Fun.(type) {
			case *ast.SelectorExpr:
				name, args = x.Sel.Name, []ast.Expr{x.X}
			case *ast.Ident:
				name = x.Name
			}
			with, ok := syncs[name]
			if !ok || name == "sync" && args == nil { // a parameter of that name
				return true
			}
			at := set.Position(call.Pos())
			s := site{file: file, line: at.Line, fn: fn.Name.Name, callee: name, start: at.Offset, end: set.Position(call.End()).Offset}
			var list []string
			for _, a := range append(args, call.Args...) {
				list = append(list, string(src[set.Position(a.Pos()).Offset:set.Position(a.End()).Offset]))
			}
			s.with = with + "(" + strings.Join(list, ", ") + ")"
			out = append(out, s)
			return true
		})
	}
	return out
}

// build compiles the power-cut tests without one call.
func build(ctx context.Context, t *testing.T, s site, dir string) (bin string, err error) {
	path, err := filepath.Abs(filepath.Join(array, s.file))
	if err != nil {
		return "", err
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	mutated := slices.Concat(src[:s.start], []byte(s.with), src[s.end:])
	file, overlay := filepath.Join(dir, "mutated.go"), filepath.Join(dir, "overlay.json")
	b, err := json.Marshal(map[string]any{"Replace": map[string]string{path: file}})
	if err == nil {
		err = cmp.Or(os.WriteFile(file, mutated, 0o600), os.WriteFile(overlay, b, 0o600))
	}
	if err != nil {
		return "", err
	}
	bin = filepath.Join(dir, "embedded.test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", bin, ".")
	cmd.Dir = array
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
}

var reason = regexp.MustCompile(`(?m)^.*CLEAVE_POWERCUT_SEED=.*$|^panic: .*$|^fatal error: .*$`)

// Without any one of its fsyncs, the array fails the power-cut tests.
// CLEAVE_POWERCUT_MUTANTS is a regular expression that chooses calls.
func TestEverySyncCounts(t *testing.T) {
	chosen, err := regexp.Compile(os.Getenv("CLEAVE_POWERCUT_MUTANTS"))
	if err != nil {
		t.Fatal(err)
	}
	all, caught, begun := 0, 0, time.Now()
	for _, s := range sites(t) {
		if !chosen.MatchString(s.String()) {
			continue
		}
		if why := needless[s.file+" "+s.fn+" "+s.callee]; why != "" {
			t.Logf("left in: %v: %s", s, why)
			continue
		}
		all++
		bin, err := build(t.Context(), t, s, t.TempDir())
		if err != nil {
			t.Fatalf("%v: %v", s, err)
		}
		cmd := exec.CommandContext(t.Context(), bin, "-test.run", "^TestPowerCut", "-test.failfast", "-test.timeout", "20m")
		cmd.Dir = array
		cmd.Env = append(os.Environ(), "CLEAVE_POWERCUT_CUTS="+cuts, "CLEAVE_POWERCUT_SEED=")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		took := time.Now()
		if err := cmd.Run(); err != nil {
			caught++
			t.Logf("caught in %v: %v: %.300s", time.Since(took).Round(time.Millisecond), s, reason.Find(out.Bytes()))
			continue
		}
		t.Errorf("nothing noticed in %v that it is missing: %v", time.Since(took).Round(time.Millisecond), s)
	}
	t.Logf("FIGURE fsyncs taken out: %d", all)
	t.Logf("FIGURE noticed: %d", caught)
	t.Logf("FIGURE time: %v", time.Since(begun).Round(time.Second))
}
