package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// app is what the commands of one tree share.
type app struct {
	Streams
	parts Parts

	output      format
	socket      string
	arraySocket string
	timeout     time.Duration
	logLevel    string
	logFormat   string
	began       bool // a command's own work has started: errors are not about usage
}

// New returns the tree of commands.
func New(s Streams, p Parts) *cobra.Command {
	_, root := newApp(s, p)
	return root
}

func newApp(s Streams, p Parts) (*app, *cobra.Command) {
	a := &app{Streams: s, parts: p, output: formatTable}
	root := &cobra.Command{
		Use:   "cleave",
		Short: "Application-consistent backups of virtual machines from the storage array",
		Long: `Cleave takes application-consistent backups of virtual machines straight from
the storage array, without stopping the machines: the guest makes its own clean
snapshot inside its virtual disk, the array splits a mirror of the volume under
it, and the split comes up as a LUN of its own in which the guest's snapshot is
recovered.

Two processes do the work: ` + "`cleave array`" + ` serves the volumes (data plane) and
` + "`cleave serve`" + ` carries out snapshot sets (control plane). All other commands ask
one of the two.

Exit status: 0 ok, 1 failed, 2 usage, 3 partial or level not reached,
4 not found, 5 busy, 6 timed out, 7 unreachable, 8 not permitted.`,
		Example: `  cleave vm list
  cleave snapshot create --vm db --wait
  cleave exec --vm db -- sh -c 'qemu-img convert -O raw "$CLEAVE_LUN_0_NBD" /backup/db.raw'`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	f := root.PersistentFlags()
	f.VarP(&a.output, "output", "o", "how results are printed: table, wide, json, yaml or name")
	f.StringVar(&a.socket, "socket", a.or("CLEAVE_SOCKET", p.ControlSocket), "control socket of cleave serve")
	f.StringVar(&a.arraySocket, "array-socket", a.or("CLEAVE_ARRAY_SOCKET", p.ArraySocket), "control socket of cleave array")
	f.DurationVar(&a.timeout, "timeout", 0, "give up after so long, as in 90s or 10m (0: never)")
	f.StringVar(&a.logLevel, "log-level", "info", "least level that is logged: debug, info, warn or error")
	f.StringVar(&a.logFormat, "log-format", "text", "how logs are written to stderr: text or json")

	commands := []*cobra.Command{a.lunCommand(), a.versionCommand()}
	if p.Service != nil {
		commands = append(commands, a.vmCommand(), a.explainCommand(), a.snapshotCommand(), a.execCommand(), a.doctorCommand())
	}
	if p.Storage != nil {
		commands = append(commands, a.volumeCommand(), a.mirrorCommand(), a.initiatorCommand(), a.maskCommand())
	}
	if p.RunArray != nil {
		commands = append(commands, a.arrayCommand())
	}
	if p.RunServe != nil {
		commands = append(commands, a.serveCommand())
	}
	for _, extra := range p.Extra {
		commands = append(commands, extra(s))
	}
	root.AddCommand(commands...)
	a.prepare(root)
	return a, root
}

// prepare makes every command of the tree behave alike: groups refuse verbs
// that they don't have, and an error before a command's own work is about
// usage.
func (a *app) prepare(c *cobra.Command) {
	for _, child := range c.Commands() {
		a.prepare(child)
	}
	if c.HasSubCommands() && c.Args == nil {
		c.Args = cobra.ArbitraryArgs
	}
	own := c.RunE
	if own == nil && c.Run == nil && c.HasSubCommands() {
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(c, args[0])
			}
			return c.Help()
		}
		return
	}
	if own == nil {
		return
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if c.HasSubCommands() && len(args) > 0 {
			return unknownVerb(c, args[0])
		}
		a.began = true
		ctx, cancel := a.limit(c.Context())
		defer cancel()
		c.SetContext(ctx)
		return own(c, args)
	}
}

func unknownVerb(c *cobra.Command, verb string) error {
	c.SuggestionsMinimumDistance = 2
	err := usagef("%s has no command %q", c.CommandPath(), verb)
	if near := c.SuggestionsFor(verb); len(near) > 0 {
		return hint(err, "did you mean `%s %s`?", c.CommandPath(), near[0])
	}
	return hint(err, "`%s --help` lists its commands", c.CommandPath())
}

// limit applies --timeout.
func (a *app) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, a.timeout)
}

// or returns the environment's value, or def.
func (a *app) or(name, def string) string {
	if v := a.env(name); v != "" {
		return v
	}
	return def
}

// logger writes to stderr, so that results stay clean.
func (a *app) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return nil, usagef("--log-level %q: want debug, info, warn or error", a.logLevel)
	}
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, at slog.Attr) slog.Attr {
		if at.Value.Kind() == slog.KindTime {
			at.Value = slog.TimeValue(at.Value.Time().UTC())
		}
		return at
	}}
	switch a.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(a.Err, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.Err, o)), nil
	}
	return nil, usagef("--log-format %q: want text or json", a.logFormat)
}

// Main runs the command line args (without the program's name) and returns the
// exit status. SIGINT and SIGTERM end the command in order; a second one ends
// the process at once.
func Main(args []string, s Streams, p Parts) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() { // ends with the process, or with the first signal
		<-ctx.Done()
		stop()
	}()
	return run(ctx, args, s, p)
}

func run(ctx context.Context, args []string, s Streams, p Parts) int {
	a, root := newApp(s, p)
	root.SetArgs(args)
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	if !a.began && !errors.Is(err, errUsage) {
		err = hint(usagef("%w", err), "`%s --help` shows what it takes", c.CommandPath())
	}
	code, next := exitOf(err)
	if s := status(0); !errors.As(err, &s) {
		say(a.Err, "cleave", err.Error())
		if next != "" {
			say(a.Err, "hint", next)
		}
	}
	return code
}

// say writes one line for a person.
func say(w io.Writer, who, text string) {
	fmt.Fprintf(w, "%s: %s\n", who, printable(strings.TrimRight(text, "\n")))
}
