package main

import (
	"fmt"
	"strings"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/mesh/wire"
)

// summary says in words what an entry says. Kinds from the future have none.
func summary(e *wire.Entry, name func(identity.ID) string) string {
	say, ok := summaries[e.Kind]
	if !ok {
		return ""
	}
	text, err := say(e.Payload, name)
	if err != nil {
		return "cannot be read: " + err.Error()
	}
	return text
}

type summarizer func(payload []byte, name func(identity.ID) string) (string, error)

// as makes a summarizer of a function of the kind's record.
func as[T any](say func(r T, name func(identity.ID) string) string) summarizer {
	return func(payload []byte, name func(identity.ID) string) (string, error) {
		var r T
		if err := wire.Unmarshal(payload, &r); err != nil {
			return "", err
		}
		return say(r, name), nil
	}
}

var summaries = map[string]summarizer{
	trust.KindGenesis: as(func(r trust.Genesis, _ func(identity.ID) string) string {
		return fmt.Sprintf("mesh %s, founded on %s by %s", r.Mesh, r.Name, r.Owner)
	}),
	trust.KindInvite: as(func(r trust.Invite, _ func(identity.ID) string) string {
		return fmt.Sprintf("for a node of %s until %s", r.Owner, r.Expires().Local().Format("2006-01-02 15:04"))
	}),
	trust.KindInviteUsed: as(func(r trust.InviteUsed, name func(identity.ID) string) string {
		return "by " + name(r.Statement.ID)
	}),
	trust.KindAdmit: as(func(r trust.Admit, _ func(identity.ID) string) string {
		return fmt.Sprintf("%s, owner %s, %s", r.Name, r.Owner, r.Role)
	}),
	trust.KindWGBind: as(func(r trust.WGBind, _ func(identity.ID) string) string {
		return "WireGuard key " + r.WG.Hex()[:12]
	}),
	trust.KindGuest: as(func(r trust.Guest, _ func(identity.ID) string) string {
		if r.NotAfter == 0 {
			return r.Name
		}
		return fmt.Sprintf("%s until %s", r.Name, r.Expires().Local().Format("2006-01-02 15:04"))
	}),
	trust.KindGuestEnd: as(func(r trust.GuestEnd, _ func(identity.ID) string) string {
		return "WireGuard key " + r.WG.Hex()[:12]
	}),
	fleet.KindOffer: as(func(r fleet.Offer, _ func(identity.ID) string) string {
		if !r.Terms.Offers {
			return "nothing"
		}
		return fmt.Sprintf("%v cores, %v, %d GPUs; to its owner and %d others", r.CPU, r.Memory, len(r.GPUs), len(r.Terms.Others))
	}),
	task.KindHand: as(func(r task.Hand, name func(identity.ID) string) string {
		return fmt.Sprintf("into the custody of %s: %s", name(r.To), title(task.Status{Agent: r.Spec.Agent, Command: r.Spec.Command}))
	}),
	task.KindSubmit: as(func(r task.Submit, name func(identity.ID) string) string {
		text := title(task.Status{Agent: r.Spec.Agent, Command: r.Spec.Command})
		if !r.For.IsZero() {
			text = "for " + name(r.For) + ": " + text
		}
		return text
	}),
	task.KindPlace: as(func(r task.Place, _ func(identity.ID) string) string {
		if len(r.Ranks) > 0 {
			return fmt.Sprintf("attempt %d: %d ranks, on %s", r.Attempt, len(r.Ranks), r.Name)
		}
		if r.Wait {
			return fmt.Sprintf("attempt %d waits: no machine has room now", r.Attempt)
		}
		if r.Node.IsZero() {
			return fmt.Sprintf("attempt %d: no machine fits", r.Attempt)
		}
		return fmt.Sprintf("attempt %d on %s, of %d machines", r.Attempt, r.Name, len(r.Verdicts)+r.More)
	}),
	task.KindCancel: as(func(r task.Cancel, _ func(identity.ID) string) string { return r.Reason }),
	task.KindLost: as(func(r task.LostRecord, _ func(identity.ID) string) string {
		return fmt.Sprintf("attempt %d: %s", r.Attempt, r.Reason)
	}),
	task.KindReceipt: as(func(r task.Receipt, _ func(identity.ID) string) string {
		return fmt.Sprintf("of attempt %d: entry %s", r.Attempt, r.Finished.String()[:12])
	}),
	task.KindAccepted: as(func(r task.Accepted, _ func(identity.ID) string) string {
		return strings.TrimSpace(fmt.Sprintf("attempt %d %s", r.Attempt, strings.Join(r.Devices, " ")))
	}),
	task.KindRefused: as(func(r task.Refused, _ func(identity.ID) string) string {
		return fmt.Sprintf("attempt %d: %v", r.Attempt, (&task.Refusal{Reasons: r.Reasons}).Error())
	}),
	task.KindStarted: as(func(r task.Started, _ func(identity.ID) string) string {
		return fmt.Sprintf("attempt %d", r.Attempt)
	}),
	task.KindFinished: as(func(r task.Finished, _ func(identity.ID) string) string {
		text := fmt.Sprintf("attempt %d %s, exit code %d, %d ms, %v of output", r.Attempt, r.State, r.ExitCode, r.Usage.WallMS, r.Usage.Output)
		if r.Reason != "" {
			text += ": " + r.Reason
		}
		return text
	}),
}
