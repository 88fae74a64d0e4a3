package assemble

import (
	"context"
	"io"
	"log/slog"

	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun/attach"
	"github.com/cleave-san/cleave/lun/mount"
	"github.com/cleave-san/cleave/lun/recovery/worker"
	"github.com/cleave-san/cleave/orchestrator/writer/guard"
	"github.com/cleave-san/cleave/plugin/api"
	"github.com/cleave-san/cleave/plugin/cli"
)

// Parts are what the command line drives in this program.
func Parts(release string, getenv func(string) string) cli.Parts {
	p := cli.Parts{
		Release: release,
		Service: func(socket string) cli.Control { return api.NewClient(socket) },
		Storage: func(socket string) cli.Storage { return storage{remote.New(socket)} },
		RunArray: func(ctx context.Context, o cli.ArrayOptions, log *slog.Logger) error {
			return Array(ctx, o, getenv, log)
		},
		RunServe: func(ctx context.Context, o cli.ServeOptions, log *slog.Logger) error {
			return Serve(ctx, o, release, getenv, log)
		},
		Arrays: func(ctx context.Context, config, socket string) ([]cli.Array, error) {
			return listArrays(ctx, config, socket, getenv)
		},
		Examine: func(ctx context.Context, o cli.ExamineOptions) ([]cli.Examination, error) {
			return examine(ctx, o, getenv)
		},
		Rescan:         func(ctx context.Context, o cli.RescanOptions) (cli.Rescan, error) { return rescan(ctx, o, getenv) },
		InspectDisks:   inspectDisks,
		Confinement:    confinement,
		OpenDisks:      openDisks,
		OpenFiles:      openFiles,
		Mount:          mountFiles,
		Unmount:        unmountFiles,
		RecoverInPlace: recoverInPlace,
		CopyDisk:       copyDisk,
		ServeLUNs:      serveLUNs,
		Attach:         attacher{},
		ServeNBD:       serveNBD,
	}
	p.ControlSocket, p.ArraySocket = Sockets(getenv)
	return p
}

// Hidden runs the commands by which this program starts itself, and says
// whether args were one. They start at once and read no configuration.
func Hidden(args []string, in io.Reader, out, errs io.Writer) (code int, hidden bool) {
	if len(args) == 0 {
		return 0, false
	}
	switch args[0] {
	case "worker":
		return worker.Main(args[1:], in, out, errs), true
	case guard.Command:
		return guard.Main(args[1:], in, out), true
	case lendCommand:
		return lendMain(in, out, errs), true
	case attach.Command:
		return attach.Main(args[1:], in, out, errs, openAttached), true
	case mount.Command:
		return mount.Main(in, out, errs, openMounted), true
	}
	return 0, false
}
