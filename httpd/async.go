package httpd

import (
	"net/http"
	"strings"

	"github.com/gofiber/fiber/v2"

	"stillframe/fsm"
)

// Headers of RFC 7240: a client that does not want to wait for a virtual machine, and the answer's word that it was
// not waited for.
const (
	headerPrefer  = "Prefer"
	headerApplied = "Preference-Applied"
	respondAsync  = "respond-async"
)

// prefersAsync reads whether the client is content with knowing that its request is accepted. Preferences that are not
// known are passed over, as the RFC has it.
func prefersAsync(fc *fiber.Ctx) bool {
	for _, value := range fc.Request().Header.PeekAll(headerPrefer) {
		for preference := range strings.SplitSeq(string(value), ",") {
			name, _, _ := strings.Cut(preference, ";")
			if strings.EqualFold(strings.TrimSpace(name), respondAsync) {
				return true
			}
		}
	}
	return false
}

// accepted answers for an intent that is in the log and open: whatever happens now, it is carried out or fails by
// itself, and what it is about can be looked at.
func (s *Server) accepted(c *call, in fsm.Intent) (reply, error) {
	c.fc.Set(headerApplied, respondAsync)
	state := s.log.State()
	if in.Kind == fsm.IntentSnapshot {
		if sn, ok := state.Snapshot(in.Snapshot); ok {
			return jsonReply(http.StatusAccepted, snapshotView(sn))
		}
	} else if sb, ok := state.Sandbox(in.Sandbox); ok {
		return jsonReply(http.StatusAccepted, s.sandboxView(sb))
	}
	// It has ended between the two looks, and failed; the kept intent says why.
	if closed, ok := state.Intent(in.ID); ok && closed.Error != nil {
		return reply{}, closed.Error
	}
	return reply{}, internal(errNoResult)
}
