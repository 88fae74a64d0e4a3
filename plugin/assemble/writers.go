package assemble

import (
	"log/slog"

	"github.com/cleave-san/cleave/orchestrator/writer"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu"
)

// openWriters makes the host writers of a configuration. Nothing is connected.
func openWriters(cs []WriterConfig, log *slog.Logger) ([]writer.Writer, error) {
	var out []writer.Writer
	for i, c := range cs {
		var w writer.Writer
		var err error
		switch c.Type {
		case "qemu":
			w, err = qemu.New(qemu.Config{VMs: c.VMs}, log.With("writer", c.Type))
		default:
			return nil, usage("writers[%d].type: %q: want qemu", i, c.Type)
		}
		if err != nil {
			return nil, usage("writers[%d]: %w", i, err)
		}
		out = append(out, w)
	}
	if len(out) == 0 {
		return nil, usage("writers: there is none, so there is no VM to back up")
	}
	return out, nil
}
